"""A checkpoint's tokenizer, opened by transformers.

Owns how: nothing is downloaded, and no code of the checkpoint's is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trident_ensemble.contract.errors import ArtifactError


def open_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder, an object of transformers.

    Raises:
        ArtifactError: the folder is missing, or transformers cannot load it; says what transformers said.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is missing; build again")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers raises, the load fails with the folder's name
        raise ArtifactError(f"{folder} cannot be loaded: {error}") from error
