"""Bad words as token ids: what they catch, judged by transformers' own processor, and what is refused."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import NoBadWordsLogitsProcessor, PreTrainedTokenizerFast

from tests.checkpoints import tiny_tokenizer
from tests.tokenizer_zoo import HIDDEN, TEXTS, ZOO, tokenizer_of
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.tokens.bad_words import BadWords, pack_words

FAMILIES = (*ZOO, "words_split_first")
#: Of these, a word between spaces has the same tokens wherever it stands.
SPLIT_FIRST = ("metaspace_bpe", "unigram", "wordpiece", "word_end_bpe", "words", "words_split_first")
WORDS = ("three", "prongs", "come out", "Tokens", "东", "東京", "🇫🇷", "<think>", "zebra", "it?", "5th", "x")


@cache
def tokenizer(family: str) -> Any:
    if family == "words_split_first":
        return tiny_tokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(family))


@cache
def bad_words(family: str) -> BadWords:
    return BadWords(tokenizer(family))


def first_banned(words_ids: list[tuple[int, ...]], ids: list[int]) -> int | None:
    """The first place whose token transformers would not have let be generated."""
    if not words_ids:
        return None
    processor = NoBadWordsLogitsProcessor([list(word) for word in words_ids])
    vocab_size = max(*ids, *(token for word in words_ids for token in word)) + 1
    for place in range(len(ids)):
        # transformers refuses an empty prompt; one of a token that no word has changes nothing.
        before = torch.tensor([[vocab_size, *ids[:place]]])
        if processor(before, torch.zeros(1, vocab_size + 1))[0, ids[place]] == -float("inf"):
            return place
    return None


@pytest.mark.parametrize("family", ZOO)
@pytest.mark.parametrize("token", HIDDEN)
def test_bad_words_the_text_of_a_special_token_bans_its_id(family: str, token: str) -> None:
    token_id = tokenizer(family).convert_tokens_to_ids(token)
    assert (token_id,) in bad_words(family).token_ids([token.encode()])


@pytest.mark.parametrize("family", SPLIT_FIRST)
def test_bad_words_a_word_between_spaces_is_caught_wherever_it_stands(family: str) -> None:
    draw = random.Random(5)  # noqa: S311
    vocabulary = [word for text in TEXTS[:2] for word in text.split()]
    for _ in range(60):
        words = [draw.choice(vocabulary) for _ in range(draw.randint(1, 6))]
        text = " ".join(words)
        bad = draw.choice(words)
        banned = bad_words(family).token_ids([bad.encode()])
        ids = tokenizer(family).encode(text, add_special_tokens=False)
        if banned:  # else it has no tokens but the unknown one
            assert first_banned(banned, ids) is not None, (bad, text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", WORDS)
def test_bad_words_a_word_as_the_tokenizer_spells_it_is_caught(family: str, word: str) -> None:
    """With a space before it, without, and behind another word."""
    made = tokenizer(family)
    banned = bad_words(family).token_ids([word.encode()])
    unknown = made.backend_tokenizer.token_to_id("<unk>")
    draw = random.Random(word)  # noqa: S311
    for text in (word, f" {word}", f"\n{word}"):
        ids = made.encode(text, add_special_tokens=False)
        if unknown in ids:
            continue
        around = [draw.randrange(3, 200) for _ in range(6)]
        assert first_banned(banned, around[:3] + ids + around[3:]) is not None, (text, ids, banned)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FAMILIES), st.sampled_from(["three", "prongs", "come out", "in", "e"]), st.data())
def test_bad_words_nothing_else_is_banned(family: str, word: str, data: st.DataObject) -> None:
    """Where a token is refused, the text that it would have ended in has the word."""
    made = tokenizer(family)
    banned = bad_words(family).token_ids([word.encode()])
    spelled = st.sampled_from(sorted({token for ids in banned for token in ids}) or [5])
    ids = data.draw(st.lists(spelled | st.integers(3, made.backend_tokenizer.get_vocab_size() - 1), max_size=12))
    place = first_banned(banned, ids) if ids else None
    if place is not None:
        assert word in made.decode(ids[: place + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(("family", "mark"), [("words_split_first", "Ġ"), ("llama_2", "▁"), ("wordpiece", "##")])
def test_bad_words_a_word_has_a_form_at_its_beginning_and_one_inside(family: str, mark: str) -> None:
    made = tokenizer(family)
    firsts = [made.convert_ids_to_tokens(form[0]) for form in bad_words(family).token_ids([b"prongs"])]
    assert {first.startswith(mark) for first in firsts} == {True, False}


def test_bad_words_a_form_is_the_whole_word_and_nothing_else() -> None:
    """Where a token spans the word's border (xc, a, t), what follows is only a part of it."""
    vocabulary = {token: place for place, token in enumerate(("c", "a", "t", " ", "\n", "x", "0", "xc", "\nc"))}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [("x", "c"), ("\n", "c")])))
    assert sorted(BadWords(made).token_ids([b"cat"])) == [(0, 1, 2), (3, 0, 1, 2)]
    begin = tokenizer("llama_2").encode("")
    assert begin
    assert not any(begin[0] in form for form in bad_words("llama_2").token_ids([b"three"]))


def test_bad_words_each_form_comes_once_and_empty_words_not_at_all() -> None:
    words = bad_words("words_split_first")
    assert words.token_ids([]) == []
    assert words.token_ids([b""]) == []
    once = words.token_ids([b"three"])
    assert len(once) == len(set(once)) > 1
    assert words.token_ids([b"", b"three", b"", b"three"]) == once


def test_bad_words_what_the_vocabulary_cannot_spell_is_not_banned() -> None:
    """It is never generated, and its tokens stand for everything else that cannot be spelled."""
    for family in ("words", "wordpiece", "word_end_bpe", "unigram"):
        assert bad_words(family).token_ids(["\U00010190".encode(), "three\U00010190".encode()]) == []
    gpt_2 = tiny_tokenizer()
    gpt_2.unk_token = "<|end|>"  # noqa: S105
    assert (0,) in BadWords(gpt_2).token_ids([b"<|end|>"]), "its end of text is a token like another"


def test_bad_words_limits() -> None:
    words = bad_words("words_split_first")
    assert words.token_ids([b"three"] * 256)
    with pytest.raises(RequestError, match=r"^bad_words: 257 are too many; at most 256"):
        words.token_ids([b"three"] * 257)
    assert words.token_ids([b"x" * 256])
    with pytest.raises(RequestError, match=r"^bad_words: 257 bytes are more than one bad word may have; at most 256"):
        words.token_ids([b"a", b"x" * 257])
    with pytest.raises(RequestError, match=r"^bad_words: is not valid UTF-8: invalid start byte at byte 1"):
        words.token_ids([b"a\xff"])
    with pytest.raises(RequestError, match=r"^bad_words: a text cannot have the character U\+0000"):
        words.token_ids([b"fine", b"a\x00b"])


def test_bad_words_a_tokenizer_that_cuts_or_fills_does_so_no_longer() -> None:
    made = tiny_tokenizer()
    made.backend_tokenizer.enable_truncation(1)
    made.backend_tokenizer.enable_padding(length=9)
    assert BadWords(made).token_ids([b"zebra crossing"]) == BadWords(tiny_tokenizer()).token_ids([b"zebra crossing"])


def unpack(packed: np.ndarray[Any, Any]) -> list[tuple[int, ...]]:
    """As tensorrtllm_backend's core reads it: the lower row counts the ids up to the end of each word."""
    ends = [int(end) for end in packed[1] if end >= 0]
    return [tuple(packed[0, start:end].tolist()) for start, end in zip([0, *ends], ends, strict=False)]


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple), max_size=8))
def test_bad_words_packing(words: list[tuple[int, ...]]) -> None:
    packed = pack_words(words)
    assert packed.dtype == np.int32
    assert packed.shape == (2, max(1, sum(map(len, words))))
    assert unpack(packed) == words


def test_bad_words_the_format_is_that_of_tensorrtllm_backend() -> None:
    assert pack_words([]).tolist() == [[-1], [-1]]
    assert pack_words([(5, 6), (7,), (8, 9, 10)]).tolist() == [[5, 6, 7, 8, 9, 10], [2, 3, 6, -1, -1, -1]]
