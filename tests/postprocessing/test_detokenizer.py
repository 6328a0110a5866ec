"""Streamed text is exactly the decoding of the whole, for every family, however the stream is cut."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from tests.tokenizer_zoo import TEXTS, ZOO, tokenizer_of
from trident_ensemble.anchors import anchor_table, context_start
from trident_ensemble.errors import ArtifactError, CheckpointError
from trident_postprocessing.detokenizer import Detokenizer, load_detokenizer, make_detokenizer

#: Ids beyond the tokenizer's, as a network with a padded vocabulary may give them.
PADDING = 3


@cache
def parts(family: str) -> tuple[Detokenizer, bytes]:
    tokenizer = tokenizer_of(family)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        table = anchor_table(path, tokenizer.get_vocab_size() + PADDING).tobytes()
    return make_detokenizer(tokenizer), table


def streamed(family: str, token_ids: list[int], cuts: list[int], extra_context: int = 0) -> list[str]:
    """The texts of the chunks when the stream is cut after `cuts[0]`, then `cuts[1]`, ... more tokens."""
    detokenizer, table = parts(family)
    texts = []
    sent = 0
    for size in [*cuts, len(token_ids)]:
        start = max(0, context_start(table, token_ids, sent) - extra_context)
        new_ids = token_ids[sent : sent + size]
        context_ids = token_ids[start:sent]
        sent += len(new_ids)
        texts.append(detokenizer.text(context_ids, new_ids, is_last=sent == len(token_ids)))
        if sent == len(token_ids):
            break
    return texts


@st.composite
def random_ids(draw: st.DrawFn, family: str) -> list[int]:
    """Any ids, with those that make trouble far more often than their number."""
    tokenizer = tokenizer_of(family)
    vocabulary = tokenizer.get_vocab()
    short = sorted(i for token, i in vocabulary.items() if len(token) <= 2 or token.startswith("<"))
    spaces = sorted(i for token, i in vocabulary.items() if "▁" in token or "Ġ" in token or "\ufffd" in token)
    blanks = [vocabulary[token] for token in ("▁", "▁▁", "Ġ") if token in vocabulary]
    any_id = st.integers(0, tokenizer.get_vocab_size() + PADDING - 1)
    kinds = [st.sampled_from(ids) for ids in (short, spaces, blanks) if ids]
    return draw(st.lists(st.one_of(any_id, *kinds), max_size=30))


@st.composite
def text_ids(draw: st.DrawFn, family: str) -> list[int]:
    """Ids of real text in many scripts, cut out anywhere, with special tokens put in between."""
    tokenizer = tokenizer_of(family)
    pieces = []
    for text in draw(st.lists(st.sampled_from(TEXTS) | st.text(max_size=8), min_size=1, max_size=3)):
        ids = tokenizer.encode(text).ids
        begin = draw(st.integers(0, len(ids)))
        pieces += ids[begin : begin + draw(st.integers(0, 25))]
        pieces += draw(st.lists(st.sampled_from([0, 1, 2]), max_size=1))
    return pieces


@pytest.mark.parametrize("family", ZOO)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_joined_chunks_are_the_decoding_of_the_whole(family: str, data: st.DataObject) -> None:
    token_ids = data.draw(random_ids(family) | text_ids(family))
    cuts = data.draw(st.lists(st.integers(1, 8), max_size=30))
    extra = data.draw(st.sampled_from([0, 0, 1, 5]))
    expected = tokenizer_of(family).decode(token_ids, skip_special_tokens=True)
    assert "".join(streamed(family, token_ids, cuts, extra)) == expected


@pytest.mark.parametrize("family", ZOO)
def test_token_by_token(family: str) -> None:
    for text in TEXTS:
        token_ids = tokenizer_of(family).encode(text).ids
        expected = tokenizer_of(family).decode(token_ids, skip_special_tokens=True)
        assert "".join(streamed(family, token_ids, [1] * len(token_ids))) == expected


@pytest.mark.parametrize("family", ZOO)
def test_a_chunk_waits_only_for_what_may_change(family: str) -> None:
    """Of Latin text nothing is held back but the newline that byte fallback spells as a byte token."""
    token_ids = tokenizer_of(family).encode("The trident has three prongs").ids
    texts = streamed(family, token_ids, [1] * len(token_ids))
    so_far = ""
    for count, text in enumerate(texts, 1):
        so_far += text
        assert so_far == tokenizer_of(family).decode(token_ids[:count], skip_special_tokens=True)


def test_an_incomplete_character_at_the_end_comes_out_with_the_last_chunk() -> None:
    tokenizer = tokenizer_of("byte_level_bytes")
    token_ids = tokenizer.encode("a😀").ids[:-1]
    assert streamed("byte_level_bytes", token_ids, [1] * len(token_ids))[-1] == "\ufffd"
    detokenizer, _ = parts("byte_level_bytes")
    assert detokenizer.text(token_ids, [], is_last=True) == "\ufffd"


def test_a_space_that_alone_would_be_stripped_is_kept() -> None:
    vocabulary = tokenizer_of("two_spaces").get_vocab()
    token_ids = [vocabulary[token] for token in ("a", "▁", "▁", "a")]
    assert streamed("two_spaces", token_ids, [1, 1, 1, 1]) == ["a", " ", " ", "a"]


def test_an_invalid_byte_takes_its_whole_run_with_it() -> None:
    """HF's byte fallback; so a run cannot leave before it ends."""
    vocabulary = tokenizer_of("llama_2").get_vocab()
    run = [vocabulary[f"<0x{byte:02X}>"] for byte in "é".encode() + b"\xff"]
    texts = streamed("llama_2", [*run, vocabulary["a"]], [1, 1, 1, 1])
    assert texts == ["", "", "", "\ufffd\ufffd\ufffda"]


def test_context_is_short_on_real_text() -> None:
    for family in ("byte_level_bpe", "byte_level_bytes"):
        _, table = parts(family)
        for text in TEXTS:
            token_ids = tokenizer_of(family).encode(text * 3).ids
            assert all(n - context_start(table, token_ids, n) <= 3 for n in range(len(token_ids)))


def test_clean_up_is_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = tokenizer_of("byte_level_bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": true}')
    token_ids = tokenizer.encode("so , it 's").ids
    assert load_detokenizer(tmp_path).text([], token_ids, is_last=True) == "so , it 's"


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read"):
        load_detokenizer(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "stage"),
    [
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), "Replace"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), "ByteLevel"),
    ],
)
def test_a_decoder_that_cannot_be_streamed_is_refused(decoder: decoders.Decoder, stage: str) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_of("words").to_str())
    tokenizer.decoder = decoder
    with pytest.raises(CheckpointError, match=f"stage {stage} of"):
        make_detokenizer(tokenizer)
