"""What ids decode to by definition, from the library's decoding of whole texts and Python's decoding of bytes."""

from __future__ import annotations

import os
import re
from functools import cache, lru_cache

from tokenizers import Tokenizer

from tests.tokenizer_zoo import BYTE_FALLBACK, HIDDEN, tokenizer_of
from trident_ensemble.text.anchors import BYTE_LEVEL_ALPHABET

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def decode(family: str, token_ids: list[int], *, skip: bool = True) -> str:
    """As `Tokenizer.decode`, but that of a run of byte tokens only the invalid bytes become U+FFFD."""
    tokenizer = tokenizer_of(family)
    if family in BYTE_FALLBACK:
        token_ids, skip = _repaired(family, token_ids, skip), False
    text: str = tokenizer.decode(token_ids, skip_special_tokens=skip)
    return text


def settled(family: str, token_ids: list[int], *, skip: bool = True) -> str:
    """As much of the text as is the same whatever tokens follow."""
    return _settled(family, tuple(token_ids), skip)


@lru_cache(maxsize=1024)
def _settled(family: str, token_ids: tuple[int, ...], skip: bool) -> str:
    texts = [decode(family, [*token_ids, *more], skip=skip) for more in _continuations(family)]
    return os.path.commonprefix(texts)  # noqa: RUF071 (characters, not folders)


def is_valid(family: str, token_ids: list[int], *, skip: bool = True) -> bool:
    """Whether the runs of byte tokens are UTF-8, so that the library decodes them to their text."""
    return family not in BYTE_FALLBACK or _repaired(family, token_ids, skip) == [
        token_id for token_id in token_ids if _is_text(tokenizer_of(family), token_id, skip)
    ]


def _is_text(tokenizer: Tokenizer, token_id: int, skip: bool) -> bool:
    token = tokenizer.id_to_token(token_id)
    return token is not None and not (skip and token in HIDDEN)


def _repaired(family: str, token_ids: list[int], skip: bool) -> list[int]:
    """The ids that are text, with U+FFFD in byte tokens for what is no UTF-8."""
    tokenizer = tokenizer_of(family)
    repaired: list[int] = []
    run = b""
    for token_id in [*token_ids, None]:
        if token_id is not None and not _is_text(tokenizer, token_id, skip):
            continue
        byte = None if token_id is None else _BYTE.fullmatch(tokenizer.id_to_token(token_id) or "")
        if byte is not None:
            run += bytes.fromhex(byte[1])
            continue
        valid = run.decode(errors="replace").encode()
        repaired += [_byte_ids(family)[one] for one in valid]
        run = b""
        if token_id is not None:
            repaired.append(token_id)
    return repaired


@cache
def _byte_ids(family: str) -> list[int]:
    vocabulary = tokenizer_of(family).get_vocab()
    return [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)]


@cache
def _continuations(family: str) -> list[list[int]]:
    """Enough to tell which characters at the end of a decoding may still become others."""
    vocabulary = tokenizer_of(family).get_vocab()
    found = [[], [vocabulary["a"]] if "a" in vocabulary else [vocabulary["one"]]]
    spelled = {byte: character for character, byte in BYTE_LEVEL_ALPHABET.items()}
    if family in BYTE_FALLBACK:
        spelled = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    if family.startswith("byte_level") or family in BYTE_FALLBACK:
        low, *others = (vocabulary[spelled[byte]] for byte in (0x80, 0x90, 0xA0))
        found += [[first, *[low] * count] for first in (low, *others) for count in range(3)]
    return found
