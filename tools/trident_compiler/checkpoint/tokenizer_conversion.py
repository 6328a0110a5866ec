"""Tokenizers without a tokenizer.json, converted by transformers.

Owns which vocabulary files are tried, the check of the result against SentencePiece's own, and what an error tells the
user to do. Never runs code of the checkpoint: a class that only the checkpoint defines is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trident_ensemble.contract.errors import CheckpointError

#: What transformers converts, the most telling first.
_CONVERTIBLE = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model", "vocab.json",
)  # fmt: skip
_PROTOBUF = "sentencepiece.sentencepiece_model_pb2"
#: Text in which conversions have differed: words, digits, several scripts, characters that no piece spells.
_PROBES = (
    "The trident has three prongs, doesn't it?",
    "1234 + 5678 = 6912",
    "naïve café, Straße, Привет мир, 東京は日本の首都です, 😀",
    "def step(self):\n    return [x ** 2 for x in range(10)]",
)
_MAX_SAID = 300


def convertible_file(folder: Path) -> Path | None:
    """Return the vocabulary that a tokenizer.json can be made of; None if there is none."""
    return next((folder / name for name in _CONVERTIBLE if (folder / name).is_file()), None)


def load_converted(folder: Path, source: Path) -> Any:
    """Return the tokenizer in transformers, which has a tokenizer of `tokenizers` behind it.

    Args:
        folder: the checkpoint's.
        source: of `convertible_file`.

    Raises:
        CheckpointError: transformers cannot convert it, or not faithfully; gives the command to run.
    """
    # Imported where it is needed: it takes seconds, and most checkpoints have a tokenizer.json.
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        with _readable_sentencepiece():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers raises, the build ends with the file's name
        raise _refuse(folder, source, str(error) or type(error).__name__) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _refuse(folder, source, f"{type(tokenizer).__name__} has no form that is saved as tokenizer.json")
    _check(folder, source, tokenizer)
    return tokenizer


def _check(folder: Path, source: Path, tokenizer: Any) -> None:
    """Compare the conversion with SentencePiece itself, where the file is SentencePiece's."""
    if source.suffix != ".model" or find_spec("sentencepiece") is None:
        return
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415

    try:
        reference = SentencePieceProcessor(model_file=str(source))
    except (RuntimeError, OSError):
        return  # tiktoken uses the same name
    for text in _PROBES:
        if tokenizer(text, add_special_tokens=False)["input_ids"] != reference.encode(text):
            raise _refuse(folder, source, f"what it makes of it gives other tokens for {text!r} than SentencePiece")


@contextmanager
def _readable_sentencepiece() -> Iterator[None]:
    """Let transformers read SentencePiece's files where its first choice of a reader does not work.

    It takes the one that comes with sentencepiece, which may ask for a newer protobuf than tritonclient allows, and has
    one of its own that asks for nothing.
    """
    if find_spec("sentencepiece") is None or find_spec("google.protobuf") is None:
        yield
        return
    try:
        import_module(_PROTOBUF)
    except Exception:  # protobuf's error about versions is of a class that comes and goes with them
        sys.modules[_PROTOBUF] = import_module("transformers.utils.sentencepiece_model_pb2_new")
        try:
            yield
        finally:
            del sys.modules[_PROTOBUF]
    else:
        yield


def _refuse(folder: Path, source: Path, said: str) -> CheckpointError:
    said = said if len(said) <= _MAX_SAID else f"{said[:_MAX_SAID]}..."
    missing = [name for name, module in _READERS if not _installed(module)]
    install = f"pip install {' '.join(missing)} and build again, or " if missing else ""
    return CheckpointError(
        f"{folder / 'tokenizer.json'}: missing, and transformers cannot convert {source.name} here: {said}; {install}"
        'write the file where it can: python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


#: What transformers reads vocabularies with, and how each is imported.
_READERS = (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"), ("tiktoken", "tiktoken"))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
