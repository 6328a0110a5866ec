"""The one limit of an engine that the text models need: how long a sequence may become.

Owns its reading from the manifest; the manifest's format as a whole is the backend's.
"""

from __future__ import annotations

import json
from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError


def read_max_seq_len(engine_folder: Path) -> int:
    """Prompt and output of one sequence together, in tokens, at most.

    Raises:
        ArtifactError: the manifest is missing or does not say.
    """
    manifest = engine_folder / layout.MANIFEST_FILE
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))["limits"]["max_seq_len"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(f"{manifest}: limits.max_seq_len cannot be read ({error!r}); build again") from None
    if not isinstance(value, int) or value < 1:
        raise ArtifactError(f"{manifest}: limits.max_seq_len must be a whole number of at least 1, not {value!r}")
    return value
