"""The card of a model that is built: what its clients must know.

Owns the served names, the time of the build, and where each fact on the card comes from. Never writes the card
anywhere.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.contract.model_card import ModelCard, check_served_name
from trident_preprocessing.chat.template_profile import read_profiles
from trident_tools.building.output_markers import OutputMarkers

#: The variable by which builds of all kinds are told a time to write in place of the present one, so that equal inputs
#: make equal files (https://reproducible-builds.org/specs/source-date-epoch).
SOURCE_DATE_EPOCH = "SOURCE_DATE_EPOCH"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:-]+")
#: A model in the cache of huggingface_hub: `models--owner--name/snapshots/revision`.
_CACHED = re.compile(r"models--(.+)")
_LONGEST = 128


@dataclass(frozen=True)
class ServedNames:
    """The names by which clients may ask for a model.

    Args:
        name: the one that answers bear.
        aliases: the others.

    Raises:
        ConfigError: one of them cannot be such a name, or is given twice.
    """

    name: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_served_name(self.name, "--served-name")
        for alias in self.aliases:
            check_served_name(alias, "--alias")
        if len(set(self.all)) < len(self.all):
            raise ConfigError(f"--alias: names are given twice: {', '.join(self.all)}")

    @property
    def all(self) -> tuple[str, ...]:
        """Every name."""
        return self.name, *self.aliases


def default_served_name(checkpoint: Path) -> str:
    """Return a name after a checkpoint's folder or file, or after the model whose folder in the hub's cache it is."""
    folder = checkpoint.resolve()
    if folder.is_file():
        folder = folder.with_suffix("")
    cached = _CACHED.fullmatch(folder.parent.parent.name) if folder.parent.name == "snapshots" else None
    parts = cached[1].split("--") if cached else [folder.name]
    clean = [_NOT_IN_NAMES.sub("-", part).strip("-._:") for part in parts]
    return "/".join(filter(None, clean))[:_LONGEST] or "model"


def check_names_are_free(names: ServedNames, others: Sequence[ModelCard]) -> None:
    """Refuse names by which another model of the repository is served.

    Raises:
        ConfigError: names the other model.
    """
    for other in others:
        for taken in (other.name, *other.aliases):
            if taken in names.all:
                raise ConfigError(
                    f"--served-name: clients ask for another model of this repository by {taken!r}, the one served as "
                    f"{other.name!r}; choose other names with --served-name and --alias"
                )


def build_time(environment: Mapping[str, str]) -> int:
    """Return the time to write on the card, in seconds since 1970: SOURCE_DATE_EPOCH, or else now.

    Raises:
        ConfigError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    text = environment.get(SOURCE_DATE_EPOCH)
    if text is None:
        return int(time.time())
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ConfigError(f"{SOURCE_DATE_EPOCH}: must be a whole number of seconds since 1970, not {text!r}")
    return int(text)


def make_card(
    names: ServedNames, created: int, engine_folder: Path, manifest: Manifest, markers: OutputMarkers
) -> ModelCard:
    """Return the card of a finished engine whose output has these markers.

    Raises:
        ArtifactError: the profiles of its chat templates cannot be read.
    """
    return ModelCard(
        name=names.name,
        aliases=names.aliases,
        created=created,
        max_seq_len=manifest.limits.max_seq_len,
        digest=_text_digest(manifest),
        takes_messages=bool(read_profiles(engine_folder)),
        takes_tools=markers.takes_tools,
        tool_format=markers.tool_format,
        tool_markers=markers.tool_markers,
        reasoning=markers.reasoning,
    )


def _text_digest(manifest: Manifest) -> str:
    """Return the SHA-256 of the tokenizer's and the chat templates' names and digests."""
    sha = hashlib.sha256()
    for name, digest in sorted(manifest.digests.items()):
        if name.startswith(f"{layout.TOKENIZER_FOLDER}/"):
            sha.update(f"{digest} {name}\n".encode())
    return sha.hexdigest()
