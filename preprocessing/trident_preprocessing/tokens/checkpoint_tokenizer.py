"""A checkpoint's tokenizer, opened by transformers.

Owns the way it is opened, and the id of its unknown token. Never downloads anything, and never runs code of the
checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trident_ensemble.contract.errors import ArtifactError


def open_tokenizer(folder: Path) -> Any:
    """Open the tokenizer in a folder; return an object of transformers.

    Raises:
        ArtifactError: the folder is missing, or transformers cannot load it; the message has transformers' own.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is missing; build again")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers raises, the load fails with the folder's name
        raise ArtifactError(f"{folder} cannot be loaded: {error}") from error


def unknown_id(backend: Any) -> int | None:
    """Return the id of the token for what the vocabulary cannot spell.

    transformers may name another token: for GPT-2 it names the end of text.

    Args:
        backend: a tokenizer of the tokenizers library.

    Returns:
        None where the vocabulary can spell everything, or the tokenizer drops what it cannot spell.
    """
    if hasattr(backend.model, "unk_token"):
        token = backend.model.unk_token
        return None if token is None else backend.token_to_id(token)
    of_unigram: int | None = json.loads(backend.to_str())["model"].get("unk_id")
    return of_unigram
