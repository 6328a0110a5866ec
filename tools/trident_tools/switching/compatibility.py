"""What one engine must have in common with another to take its place in a running server.

Owns the comparison of two manifests, and what is advised where they differ. Never opens an engine.

Preprocessing and postprocessing read the tokenizer and the longest sequence once, when they start, and serve requests
of both engines while one takes the place of the other; clients know both from the model's card.
"""

from __future__ import annotations

from trident_backend.engine.protocol import EngineSpec
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.contract.settings import CoreSettings, check_limits
from trident_tools.building.preflight import check_machine

#: What to do with an engine that cannot be a version beside the others.
ELSEWHERE = (
    "build it into a repository of its own, serve that beside this one, and move the callers with `trident rollout`"
)
_TEXT_FILES = (layout.TOKEN_TABLE_FILE, layout.TEMPLATE_PROFILES_FILE)


def text_digests(manifest: Manifest) -> dict[str, str]:
    """Return the digests of the files by which text becomes ids and ids become text."""
    folder = f"{layout.TOKENIZER_FOLDER}/"
    return {name: digest for name, digest in manifest.digests.items() if name.startswith(folder) or name in _TEXT_FILES}


def check_replaces(old: Manifest, new: Manifest) -> None:
    """Refuse an engine that cannot take another's place without a new start of the server.

    Raises:
        ServerError: names what differs, and says what to do.
    """
    check_text(old, text_digests(new))
    lengths = old.limits.max_seq_len, new.limits.max_seq_len
    if lengths[0] != lengths[1]:
        raise ServerError(
            f"max_seq_len: it is {lengths[1]}, and that of the other versions is {lengths[0]}, which clients and the "
            f"text models know; {ELSEWHERE}"
        )


def check_text(old: Manifest, digests: dict[str, str]) -> None:
    """Refuse files of text that are not those of an engine.

    Args:
        old: the engine's manifest.
        digests: as `text_digests` returns them.

    Raises:
        ServerError: names a file.
    """
    expected = text_digests(old)
    for name in sorted(expected.keys() | digests.keys()):
        if expected.get(name) != digests.get(name):
            raise ServerError(
                f"{name}: it differs from that of the other versions, with which the text models run; {ELSEWHERE}"
            )


def check_next(settings: CoreSettings, old: Manifest, new: Manifest) -> None:
    """Refuse an engine that cannot take another's place in a core with these settings, on this machine.

    Raises:
        TridentError: says what differs or is missing, and what to do.
    """
    check_replaces(old, new)
    check_limits(settings, EngineSpec.from_manifest(new))
    check_machine(settings.gpu, new)
