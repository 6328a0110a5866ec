"""Anchors: what they promise of the decoder, the choice of context, and the time it takes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer, decoders, models

from tests.tokenizer_zoo import HIDDEN, ODD, UNKNOWN, ZOO, tokenizer_of
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.text.anchors import (
    ANCHOR,
    BYTE_LEVEL_ALPHABET,
    CONTINUATION,
    NOTHING,
    OPEN,
    SPECIAL,
    anchor_table,
    byte_level_bytes,
    byte_of,
    byte_tokens,
    context_ids,
    context_start,
)


def table_of(tokenizer: Tokenizer, folder: Path, vocab_size: int) -> npt.NDArray[np.uint8]:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return anchor_table(path, vocab_size)


@pytest.mark.parametrize("family", ZOO)
def test_anchors_an_anchor_is_a_visible_token_with_text(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family)
    size = tokenizer.get_vocab_size()
    table = table_of(tokenizer, tmp_path, size + 5)
    assert table.dtype == np.uint8
    assert table.shape == (size + 5,)
    assert not table[size:].any(), "ids that the tokenizer does not have"
    for token_id in range(size):
        alone = tokenizer.decode([token_id])
        token = tokenizer.id_to_token(token_id) or ""
        if not alone or token in HIDDEN:
            assert table[token_id] != ANCHOR, token
        elif "\ufffd" not in alone and (family in ("unigram", "wordpiece", "words") or not token.startswith("<0x")):
            assert table[token_id] == ANCHOR, token


@pytest.mark.parametrize(
    ("family", "open_bytes"),
    [
        ("gemma", b""),
        ("llama_2", b" "),
        ("two_spaces", " ▁".encode()),
        ("strips_ideographic_spaces", "\u3000".encode()),
        ("metaspace_bpe", bytes(range(256))),
        ("strips_replacement_characters", bytes(range(256))),
    ],
)
def test_anchors_byte_tokens_are_anchors_but_for_what_may_be_stripped(
    family: str, open_bytes: bytes, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(family)
    table = table_of(tokenizer, tmp_path, tokenizer.get_vocab_size())
    for byte in range(256):
        kind = CONTINUATION if 0x80 <= byte < 0xC0 else ANCHOR
        assert table[tokenizer.token_to_id(f"<0x{byte:02X}>")] == (OPEN if byte in open_bytes else kind)


@pytest.mark.parametrize("family", [*ZOO, *ODD])
def test_anchors_a_special_token_is_marked_and_has_a_kind_for_where_it_is_text(family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family)
    table = table_of(tokenizer, tmp_path, tokenizer.get_vocab_size())
    hidden = {tokenizer.token_to_id(token) for token in HIDDEN}
    assert {token_id for token_id, entry in enumerate(table.tolist()) if entry & SPECIAL} == hidden
    assert {table[token_id] for token_id in hidden} == {SPECIAL + ANCHOR}


def test_anchors_tokens_that_are_no_text_are_left_out_of_the_context() -> None:
    table = bytes([ANCHOR, SPECIAL + ANCHOR, NOTHING, OPEN, CONTINUATION])
    token_ids = [0, 1, 2, 3, 1, 4, 2]
    assert context_ids(table, token_ids, 7, skip_special_tokens=True) == [0, 3, 4]
    assert context_ids(table, token_ids, 7, skip_special_tokens=False) == [1, 4]


def test_anchors_byte_tokens_are_those_of_the_library() -> None:
    decoder = decoders.ByteFallback()
    for token in (
        "<0x41>",
        "<0xe9>",
        "<0xE9>",
        "<0x+5>",
        "<0x-5>",
        "<0x 5>",
        "<0x5>",
        "<0x041>",
        "<0xGG>",
        "<0xé>",
        "0x41",
        *byte_tokens(bytes(range(128))),
    ):
        decoded = decoder.decode([token])
        assert byte_of(token) == (None if decoded == token else ord(decoded) if decoded != "\ufffd" else 0xE9), token


def test_anchors_continuation_bytes_are_told_from_first_bytes(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte_level_bytes")
    table = table_of(tokenizer, tmp_path, tokenizer.get_vocab_size())
    for character, byte in BYTE_LEVEL_ALPHABET.items():
        assert table[tokenizer.token_to_id(character)] == (CONTINUATION if 0x80 <= byte < 0xC0 else ANCHOR)


def test_anchors_the_byte_level_alphabet_is_the_decoders() -> None:
    assert sorted(BYTE_LEVEL_ALPHABET.values()) == list(range(256))
    decoder = decoders.ByteLevel()
    for character, byte in BYTE_LEVEL_ALPHABET.items():
        assert decoder.decode([character]) == bytes([byte]).decode(errors="replace")
    for token in ("é", "é日", "Ġthe", "<|end|>", "\ufffd", "a b"):
        assert decoder.decode([token]) == byte_level_bytes(token).decode(errors="replace")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], 0),
        ([0, 0, 0], 0),
        ([1, 0, 0], 0),
        ([1, 1, 0], 1),
        ([1, 0, 1], 2),
        ([1, 2, 2], 0),
        ([1, 2, 2, 2], 1),
        ([1, 2, 0, 2, 2, 0], 1),
        ([1, 2, 2, 2, 2, 2], 3),
    ],
)
def test_anchors_context_start(kinds: list[int], expected: int) -> None:
    table = bytes(kinds)
    assert context_start(table, [*range(len(kinds)), 0, 0], len(kinds)) == expected
    assert context_start(np.array(kinds, np.uint8), list(range(len(kinds))), len(kinds)) == expected


def test_anchors_a_damaged_or_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        anchor_table(tmp_path / "tokenizer.json", 10)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        anchor_table(tmp_path / "tokenizer.json", 10)


@pytest.mark.slow
def test_anchors_a_large_vocabulary_takes_seconds_at_most(tmp_path: Path) -> None:
    words = {f"▁word{i}": i for i in range(1, 128_000)}
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0, **words}, unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    begin = time.process_time()
    assert table_of(tokenizer, tmp_path, 128_256).sum() == 128_000
    assert time.process_time() - begin < 10
