"""Guides for every family of tokenizers: what clients read is what the grammar says, or the family is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.guides import NO_TEXT, VOCAB_SIZE, allowed, guides_for, seeded, write
from tests.tokenizer_zoo import ZOO, tokenizer_of
from trident_backend.guided.compiler import GrammarCompiler
from trident_backend.guided.vocabulary import read_vocabulary, vocabulary_of
from trident_ensemble.contract.errors import CheckpointError, RequestError

GUIDED = ("byte_level_bpe", "byte_level_bytes", "llama_2", "gemma", "two_spaces", "metaspace_bpe", "unigram")
REFUSED = tuple(family for family in ZOO if family not in GUIDED)
#: Unigram tokens spell no byte but their own characters.
EXPRESSION = r' {0,3}(the|It|[a-z"]+|東?京)?([ ,]+[a-z]+)*'


@pytest.fixture(scope="module")
def guides_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GrammarCompiler]:
    return {family: guides_for(tokenizer_of(family), tmp_path_factory.mktemp(family)) for family in ZOO}


@pytest.mark.parametrize("family", GUIDED)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_guided_families_the_decoded_output_matches(
    guides_of: dict[str, GrammarCompiler], family: str, seed: int
) -> None:
    guide = guides_of[family].compile("regex", EXPRESSION).start(frozenset({NO_TEXT}))
    token_ids, has_ended = write(guide, seeded(seed), most=100)
    text = tokenizer_of(family).decode(token_ids)
    assert not has_ended or re.fullmatch(EXPRESSION, text), text


@pytest.mark.parametrize("family", GUIDED)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_guided_families_the_decoded_output_after_a_prompt_matches(
    guides_of: dict[str, GrammarCompiler], family: str, seed: int
) -> None:
    tokenizer = tokenizer_of(family)
    prompt = tokenizer.encode("The trident", add_special_tokens=False).ids
    guide = guides_of[family].compile("regex", EXPRESSION).start(frozenset({NO_TEXT}), begins_text=False)
    token_ids, has_ended = write(guide, seeded(seed), most=100)
    text = tokenizer.decode(prompt + token_ids)[len(tokenizer.decode(prompt)) :]
    assert not has_ended or re.fullmatch(EXPRESSION, text), text


_TAG: dict[str, Any] = {
    "type": "tag",
    "begin": "<|late|>",
    "content": {"type": "regex", "pattern": "[a-z]{1,3}"},
    "end": "<think>",
}
_TAGS = {"type": "triggered_tags", "triggers": ["<|late|>"], "tags": [_TAG]}


@pytest.mark.parametrize("family", GUIDED)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_guided_families_markers_stand_around_what_the_guide_says(
    guides_of: dict[str, GrammarCompiler], family: str, seed: int
) -> None:
    """A special token and an ordinary added one, by their ids, also as the first token."""
    tokenizer = tokenizer_of(family)
    begin, end = (tokenizer.token_to_id(text) for text in (_TAG["begin"], _TAG["end"]))
    assert begin is not None
    assert end is not None
    guide = guides_of[family].compile("structural_tag", json.dumps({"type": "structural_tag", "format": _TAGS}))
    closers = frozenset({begin, end})
    token_ids, has_ended = write(guide.start(frozenset({NO_TEXT})), seeded(seed), closers=closers, most=60)
    if has_ended:
        text = tokenizer.decode(token_ids, skip_special_tokens=False)
        num_tags = len(re.findall(r"<\|late\|> ?[a-z]{1,3} ?<think>", text))
        assert token_ids.count(begin) == token_ids.count(end) == num_tags, text


@pytest.mark.parametrize("family", ["byte_level_bpe", "llama_2", "gemma"])
def test_guided_families_a_space_at_the_beginning_is_written_as_it_will_be_decoded(
    guides_of: dict[str, GrammarCompiler], family: str
) -> None:
    for seed, choice in enumerate(("the", " the") * 3):
        guide = guides_of[family].compile("choice", json.dumps([choice])).start(frozenset({NO_TEXT}))
        assert tokenizer_of(family).decode(write(guide, seeded(seed))[0]) == choice


def test_guided_families_a_space_that_decoding_would_strip_whatever_is_written_is_refused(
    guides_of: dict[str, GrammarCompiler],
) -> None:
    with pytest.raises(RequestError, match="allows no text"):
        guides_of["unigram"].compile("choice", '[" the"]')
    guides_of["unigram"].compile("choice", '[" the", "the"]')


def test_guided_families_a_token_whose_space_will_be_stripped_may_begin_the_text(
    guides_of: dict[str, GrammarCompiler],
) -> None:
    tokenizer = tokenizer_of("llama_2")
    with_space, rest = (tokenizer.token_to_id(token) for token in ("▁th", "e"))
    assert with_space is not None
    assert rest is not None
    grammar = guides_of["llama_2"].compile("choice", '["the"]')
    guide = grammar.start(frozenset({NO_TEXT}))
    assert with_space in allowed(guide)[0]
    guesses = (with_space, rest)
    assert allowed(guide, guesses)[2] == {NO_TEXT}
    assert with_space in allowed(guide)[0]
    for token_id in guesses:
        guide.advance(token_id)
    assert guide.is_finished
    assert with_space not in allowed(grammar.start(frozenset({NO_TEXT}), begins_text=False))[0]


@pytest.mark.parametrize("family", ["llama_2", "gemma", "two_spaces", "metaspace_bpe"])
def test_guided_families_characters_without_a_token_are_spelt_in_bytes(
    guides_of: dict[str, GrammarCompiler], family: str
) -> None:
    choices = ["😀 naïve", "日本の首都", "\U00020000"]
    for seed, choice in enumerate(choices):
        guide = guides_of[family].compile("choice", json.dumps([choice])).start(frozenset({NO_TEXT}))
        assert tokenizer_of(family).decode(write(guide, seeded(seed))[0]) == choice


@pytest.mark.parametrize("family", ["two_spaces", "metaspace_bpe"])
def test_guided_families_a_character_that_decoding_replaces_is_never_spelt(
    guides_of: dict[str, GrammarCompiler], family: str
) -> None:
    with pytest.raises(RequestError, match="allows no text"):
        guides_of[family].compile("choice", '["▁"]')
    guide = guides_of[family].compile("regex", "(?s).{1,9}").start(frozenset({NO_TEXT}))
    assert tokenizer_of(family).token_to_id("<0xE2>") not in allowed(guide)[0]


@pytest.mark.parametrize("family", GUIDED)
def test_guided_families_the_texts_of_tokens_join_to_what_is_decoded(family: str) -> None:
    tokenizer = tokenizer_of(family)
    vocabulary = vocabulary_of(tokenizer, VOCAB_SIZE)
    assert not any(b"\xff" in text for at, text in enumerate(vocabulary.texts) if at not in vocabulary.marker_tokens)
    rng = seeded(3)
    candidates = [token_id for token_id in range(VOCAB_SIZE) if vocabulary.texts[token_id]]
    for _ in range(500):
        token_ids = rng.choices(candidates, k=6)
        first = token_ids[0] if vocabulary.first_ids is None else int(vocabulary.first_ids[token_ids[0]])
        if first < 0:
            continue
        spelled = vocabulary.texts[first] + b"".join(vocabulary.texts[token_id] for token_id in token_ids[1:])
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            continue
        if "▁" not in text:
            assert tokenizer.decode(token_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("family", REFUSED)
def test_guided_families_a_tokenizer_whose_tokens_have_no_text_of_their_own_is_refused(
    guides_of: dict[str, GrammarCompiler], family: str
) -> None:
    with pytest.raises(RequestError) as caught:
        guides_of[family].compile("json", "")
    assert caught.value.field == "guided_decoding_guide_type"
    assert "this checkpoint's tokenizer cannot be guided: tokenizer.json: decoder: with" in caught.value.problem


def test_guided_families_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        read_vocabulary(tmp_path / "tokenizer.json", VOCAB_SIZE)
