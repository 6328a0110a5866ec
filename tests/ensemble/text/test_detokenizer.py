"""Streamed text is exactly the decoding of the whole, for every family, however the stream is cut."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from tests.decoding import decode, is_valid, settled
from tests.mistral_tokenizers import REAL
from tests.scripts import SCRIPTS
from tests.tokenizer_zoo import BYTE_FALLBACK, HIDDEN, ODD, TEXTS, ZOO, tokenizer_of
from trident_ensemble.contract.errors import ArtifactError, CheckpointError
from trident_ensemble.text.anchors import ANCHOR, BYTE_LEVEL_ALPHABET, anchor_table, context_ids, context_start
from trident_ensemble.text.detokenizer import Detokenizer, load_detokenizer, make_detokenizer

#: Ids beyond the tokenizer's, as a network with a padded vocabulary may give them.
PADDING = 3


@cache
def parts(family: str) -> tuple[Detokenizer, bytes]:
    tokenizer = REAL[family]().tokenizer if family in REAL else tokenizer_of(family)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        table = anchor_table(path, tokenizer.get_vocab_size() + PADDING).tobytes()
    return make_detokenizer(tokenizer), table


def streamed(
    family: str, token_ids: list[int], cuts: list[int], extra_context: int = 0, *, skip: bool = True, late: bool = False
) -> list[str]:
    """The texts of the chunks when the stream is cut after `cuts[0]`, then `cuts[1]`, ... more tokens.

    Args:
        late: that a chunk was the last turns out afterwards, so an empty one follows.
    """
    detokenizer, table = parts(family)
    texts: list[str] = []
    sizes = iter(cuts)
    sent = 0
    is_last = False
    while not is_last:
        new_ids = token_ids[sent : sent + next(sizes, len(token_ids))]
        is_last = sent + len(new_ids) == len(token_ids) and not (late and new_ids)
        context = context_ids(table, token_ids, sent, skip_special_tokens=skip)
        if extra_context:
            start = context_start(table, token_ids, sent, skip_special_tokens=skip)
            context = token_ids[max(0, start - extra_context) : sent]
        texts.append(detokenizer.text(context, new_ids, is_last=is_last, skip_special_tokens=skip))
        sent += len(new_ids)
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
def spelled_ids(draw: st.DrawFn, family: str) -> list[int]:
    """Characters byte by byte, with bytes left out, changed and put in, and other tokens in between."""
    vocabulary = tokenizer_of(family).get_vocab()
    spelled = {byte: character for character, byte in BYTE_LEVEL_ALPHABET.items()}
    if family in BYTE_FALLBACK:
        spelled = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    troublesome = st.sampled_from([0x20, 0x80, 0xA0, 0xBD, 0xC0, 0xE0, 0xE2, 0xE3, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF])
    characters = st.text("a é東▁\u3000\ufffd😀\U00020000", min_size=1, max_size=3).map(str.encode)
    pieces = draw(st.lists(characters | st.lists(troublesome, max_size=3).map(bytes), max_size=6))
    ids = [vocabulary[spelled[byte]] for piece in pieces for byte in piece if spelled[byte] in vocabulary]
    others = [vocabulary[token] for token in (*HIDDEN, "a", "▁", "<think>") if token in vocabulary]
    others.append(tokenizer_of(family).get_vocab_size() + 1)
    for token_id in draw(st.lists(st.sampled_from(others), max_size=3)):
        ids.insert(draw(st.integers(0, len(ids))), token_id)
    if ids:
        del ids[draw(st.integers(0, len(ids) - 1)) : len(ids) if draw(st.booleans()) else 0]
    return ids


@st.composite
def text_ids(draw: st.DrawFn, family: str) -> list[int]:
    """Ids of real text in many scripts, cut out anywhere, with special tokens put in between."""
    tokenizer = tokenizer_of(family)
    pieces = []
    texts = st.sampled_from(TEXTS) | st.sampled_from(list(SCRIPTS.values())) | st.text(max_size=8)
    for text in draw(st.lists(texts, min_size=1, max_size=3)):
        ids = tokenizer.encode(text).ids
        begin = draw(st.integers(0, len(ids)))
        pieces += ids[begin : begin + draw(st.integers(0, 25))]
        pieces += draw(st.lists(st.sampled_from([0, 1, 2, tokenizer.token_to_id("<｜end▁of▁text｜>")]), max_size=1))
    return pieces


@pytest.mark.slow
@pytest.mark.parametrize("family", [*ZOO, *ODD])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_detokenizer_joined_chunks_are_the_decoding_of_the_whole(family: str, data: st.DataObject) -> None:
    token_ids = data.draw(random_ids(family) | text_ids(family) | spelled_ids(family))
    cuts = data.draw(st.lists(st.integers(1, 8), max_size=30))
    extra = data.draw(st.sampled_from([0, 0, 1, 5]))
    skip = data.draw(st.booleans())
    late = data.draw(st.booleans())
    text = "".join(streamed(family, token_ids, cuts, extra, skip=skip, late=late))
    assert text == decode(family, token_ids, skip=skip)
    if is_valid(family, token_ids, skip=skip):
        assert text == tokenizer_of(family).decode(token_ids, skip_special_tokens=skip)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*ZOO, *ODD])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_detokenizer_all_that_can_no_longer_change_has_been_emitted(family: str, data: st.DataObject) -> None:
    """However the stream was cut; so the core knows what has been without remembering the cuts."""
    token_ids = data.draw(random_ids(family) | text_ids(family) | spelled_ids(family))
    cuts = data.draw(st.lists(st.integers(1, 8), max_size=30))
    skip = data.draw(st.booleans())
    texts = streamed(family, token_ids, cuts, skip=skip, late=True)[:-1]
    for count in range(len(texts) + 1):
        num_tokens = sum([*cuts, len(token_ids)][:count])
        assert "".join(texts[:count]) == settled(family, token_ids[:num_tokens], skip=skip)


@pytest.mark.parametrize("family", ZOO)
@pytest.mark.parametrize("skip", [True, False])
def test_detokenizer_every_script_in_chunks_of_one_to_eight_tokens(family: str, skip: bool) -> None:
    for text in [*TEXTS, *SCRIPTS.values()]:
        token_ids = tokenizer_of(family).encode(text).ids
        expected = tokenizer_of(family).decode(token_ids, skip_special_tokens=skip)
        for size in range(1, 9):
            assert "".join(streamed(family, token_ids, [size] * len(token_ids), skip=skip)) == expected


@pytest.mark.parametrize("family", [family for family in ZOO if family.startswith("byte_level")] + ["llama_2", "gemma"])
def test_detokenizer_text_comes_back_as_it_was_where_a_tokenizer_spells_bytes(family: str) -> None:
    for text in SCRIPTS.values():
        token_ids = tokenizer_of(family).encode(text).ids
        assert "".join(streamed(family, token_ids, [3] * len(token_ids))) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_detokenizer_a_real_tokenizers_text_is_what_its_authors_library_decodes(name: str) -> None:
    real = REAL[name]()
    for text in [*TEXTS, *SCRIPTS.values()]:
        token_ids = real.encode(text)
        expected = real.decode(token_ids, True)
        for size in range(1, 9):
            assert "".join(streamed(name, token_ids, [size] * len(token_ids))) == expected
    assert all(real.decode(real.encode(text), True) == text for text in SCRIPTS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_detokenizer_random_ids_of_a_real_tokenizer_are_what_its_authors_library_decodes(
    name: str, data: st.DataObject
) -> None:
    real = REAL[name]()
    special = [token_id for token_id in range(1, 40) if token_id in real.plain_ids]
    texts = st.sampled_from(list(SCRIPTS.values())).map(lambda text: real.encode(text)[1:-1])
    pieces = st.lists(st.sampled_from(real.plain_ids) | st.sampled_from(special), max_size=8) | texts
    token_ids = [token_id for piece in data.draw(st.lists(pieces, max_size=4)) for token_id in piece]
    skip = name == "mistral_sentencepiece" or data.draw(st.booleans())
    cuts = data.draw(st.lists(st.integers(1, 8), max_size=30))
    assert "".join(streamed(name, token_ids, cuts, skip=skip)) == real.decode(token_ids, skip)


@pytest.mark.parametrize("family", ZOO)
def test_detokenizer_nothing_of_latin_text_waits(family: str) -> None:
    token_ids = tokenizer_of(family).encode("The trident has three prongs").ids
    texts = streamed(family, token_ids, [1] * len(token_ids))
    so_far = ""
    for count, text in enumerate(texts, 1):
        so_far += text
        assert so_far == tokenizer_of(family).decode(token_ids[:count], skip_special_tokens=True)


@pytest.mark.parametrize("family", ZOO)
def test_detokenizer_a_special_token_that_is_text_leaves_at_once(family: str) -> None:
    token_ids = [tokenizer_of(family).get_vocab()["<|late|>"]] * 3
    assert [text.strip() for text in streamed(family, token_ids, [1, 1, 1], skip=False, late=True)] == [
        "<|late|>"
    ] * 3 + [""]
    assert streamed(family, token_ids, [1, 1, 1], skip=True, late=True) == [""] * 4


def test_detokenizer_an_incomplete_character_at_the_end_comes_out_with_the_last_chunk() -> None:
    tokenizer = tokenizer_of("byte_level_bytes")
    token_ids = tokenizer.encode("a😀").ids[:-1]
    assert streamed("byte_level_bytes", token_ids, [1] * len(token_ids))[-1] == "\ufffd"
    detokenizer, _ = parts("byte_level_bytes")
    assert detokenizer.text(token_ids, [], is_last=True) == "\ufffd"


def test_detokenizer_a_space_that_alone_would_be_stripped_is_kept() -> None:
    vocabulary = tokenizer_of("two_spaces").get_vocab()
    token_ids = [vocabulary[token] for token in ("a", "▁", "▁", "a")]
    assert streamed("two_spaces", token_ids, [1, 1, 1, 1]) == ["a", " ", " ", "a"]


@pytest.mark.parametrize("family", BYTE_FALLBACK)
def test_detokenizer_a_character_in_byte_tokens_leaves_with_its_last_byte(family: str) -> None:
    vocabulary = tokenizer_of(family).get_vocab()
    text = "東京は日本の首都です。😀é"
    token_ids = [vocabulary["a"], *(vocabulary[f"<0x{byte:02X}>"] for byte in text.encode())]
    arrived = iter(streamed(family, token_ids, [1] * len(token_ids)))
    assert next(arrived) == "a"
    for character in text.replace("é", "\ufffd") if family == "strips_replacement_characters" else text:
        held = len((character if character != "\ufffd" else "é").encode()) - 1
        assert [next(arrived) for _ in range(held + 1)] == [""] * held + [character]


def test_detokenizer_of_a_run_only_the_invalid_bytes_are_replaced() -> None:
    """The library makes one U+FFFD of each byte of such a run, so that its first character would wait for its last."""
    vocabulary = tokenizer_of("llama_2").get_vocab()
    run = [vocabulary[f"<0x{byte:02X}>"] for byte in "é".encode() + b"\xff" + "日".encode()[:2]]
    texts = streamed("llama_2", [*run, vocabulary["a"]], [1] * 6)
    assert texts == ["", "é", "\ufffd", "", "", "\ufffda"]
    assert tokenizer_of("llama_2").decode([*run, vocabulary["a"]]) == "\ufffd" * 5 + "a"


@pytest.mark.parametrize("family", BYTE_FALLBACK)
def test_detokenizer_a_hidden_token_inside_of_a_character_is_passed_over(family: str) -> None:
    """As in the library, which leaves special tokens out before it decodes."""
    vocabulary = tokenizer_of(family).get_vocab()
    first, *rest = (vocabulary[f"<0x{byte:02X}>"] for byte in "東".encode())
    token_ids = [vocabulary["a"], first, vocabulary["</s>"], *rest]
    assert streamed(family, token_ids, [1] * 5) == ["a", "", "", "", "東"]
    assert tokenizer_of(family).decode(token_ids) == "a東"


def test_detokenizer_context_is_short_on_real_text() -> None:
    for family in ("byte_level_bpe", "byte_level_bytes", "llama_2", "gemma"):
        _, table = parts(family)
        for text in [*TEXTS, *SCRIPTS.values()]:
            token_ids = tokenizer_of(family).encode(text * 3).ids
            assert all(n - context_start(table, token_ids, n) <= 4 for n in range(len(token_ids)))


@pytest.mark.parametrize("family", [*ZOO, *ODD])
def test_detokenizer_hidden_tokens_are_no_part_of_a_context(family: str) -> None:
    """Also if there are thousands, as behind an end of text that is ignored."""
    _, table = parts(family)
    token = table.index(ANCHOR)
    token_ids = [token, *[tokenizer_of(family).get_vocab()["</s>"]] * 5000]
    assert context_ids(table, token_ids, 5001, skip_special_tokens=True) == [token]
    assert len(context_ids(table, token_ids, 5001, skip_special_tokens=False)) == 1


def test_detokenizer_clean_up_is_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = tokenizer_of("byte_level_bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": true}')
    token_ids = tokenizer.encode("so , it 's").ids
    assert load_detokenizer(tmp_path).text([], token_ids, is_last=True) == "so , it 's"


def test_detokenizer_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read"):
        load_detokenizer(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "stage"),
    [
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), "Replace"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), "ByteLevel"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Replace("ab", "c")]), "Replace"),
        (decoders.Sequence([decoders.Replace("A", "B"), decoders.ByteFallback(), decoders.Fuse()]), "ByteFallback"),
    ],
)
def test_detokenizer_a_decoder_that_cannot_be_streamed_is_refused(decoder: decoders.Decoder, stage: str) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_of("words").to_str())
    tokenizer.decoder = decoder
    with pytest.raises(CheckpointError, match=f"stage {stage} of"):
        make_detokenizer(tokenizer)


def test_detokenizer_half_a_surrogate_never_becomes_a_character_and_leaves_at_once() -> None:
    tokenizer = tokenizer_of("byte_level_bytes")
    spelled = {byte: tokenizer.get_vocab()[character] for character, byte in BYTE_LEVEL_ALPHABET.items()}
    first, second, third = (spelled[byte] for byte in b"\xed\xbd\x80")
    detokenizer = make_detokenizer(tokenizer)
    assert detokenizer.text([], [first], is_last=False) == ""
    assert detokenizer.text([first], [second], is_last=False) == "\ufffd\ufffd"
    assert detokenizer.text([first, second], [third], is_last=False) == "\ufffd"
    assert tokenizer.decode([first, second, third]) == "\ufffd\ufffd\ufffd"
