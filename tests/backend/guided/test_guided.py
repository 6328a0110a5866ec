"""Guides follow their grammar to the token: what they allow, where they end, what they refuse."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.fakes.guides import (
    FAMILY,
    NO_TEXT,
    VOCAB_SIZE,
    accepts,
    allowed,
    encode,
    follow,
    guides_for,
    seeded,
    write,
)
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.guided.compiler import CompiledGrammar, GrammarCompiler
from trident_backend.guided.grammars import lark_grammar
from trident_backend.guided.memory import GuideMemory
from trident_backend.guided.vocabulary import TokenizerInfo, Vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(FAMILY)


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return guides_for(tokenizer, tmp_path_factory.mktemp("engine"))


def test_guided_every_token_that_the_expression_allows_is_allowed_and_no_other(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    guide = guides.compile("regex", "[a-z]{1,3}").start(frozenset({NO_TEXT}))
    texts = {token_id: tokenizer.decode([token_id]) for token_id in range(tokenizer.get_vocab_size())}
    left = 3
    for token_id in encode(tokenizer, "t") + encode(tokenizer, "h"):
        expected = {other for other, text in texts.items() if re.fullmatch(f"[a-z]{{1,{left}}}", text)}
        assert allowed(guide)[0] == expected | ({NO_TEXT} if left < 3 else set())
        guide.advance(token_id)
        left -= 1


def test_guided_the_end_is_allowed_exactly_where_the_text_may_end(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    guide = guides.compile("regex", "a(bb)*c?").start(frozenset({NO_TEXT, 1}))
    text = ""
    for token_id in encode(tokenizer, "abbbbc"):
        may_end = re.fullmatch("a(bb)*c?", text) is not None
        assert (allowed(guide)[0] & {NO_TEXT, 1} == {NO_TEXT, 1}) == may_end
        assert not guide.is_finished
        guide.advance(token_id)
        text += tokenizer.decode([token_id])
    assert guide.is_finished
    assert allowed(guide) == [{NO_TEXT, 1}]


def test_guided_a_token_of_text_that_ends_the_text_is_allowed_at_the_end_alone(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    (newline,) = encode(tokenizer, "\n")
    guide = guides.compile("regex", r"(a\n?b?)+").start(frozenset({newline}))
    assert newline not in allowed(guide)[0]
    guide.advance(*encode(tokenizer, "a"))
    assert newline in allowed(guide)[0]
    unfinished = guides.compile("regex", r"a\n*b").start(frozenset({newline}))
    unfinished.advance(*encode(tokenizer, "a"))
    assert newline not in allowed(unfinished)[0]
    assert allowed(guide, (newline,))[1] == set()


def test_guided_without_end_ids_nothing_ends_the_text(guides: GrammarCompiler, tokenizer: Tokenizer) -> None:
    guide = guides.compile("choice", '["yes", "yes sir"]').start(frozenset())
    assert follow(guide, encode(tokenizer, "yes"))
    assert not guide.is_finished
    assert follow(guide, encode(tokenizer, " sir"))
    assert guide.is_finished
    assert allowed(guide) == [set()]


def test_guided_special_tokens_are_never_allowed_and_added_ones_are_text(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    guide = guides.compile("regex", "(?s).*").start(frozenset({NO_TEXT}))
    choices = allowed(guide)[0]
    assert not choices & {tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<unk>", "<|late|>")}
    assert {tokenizer.token_to_id(name) for name in ("<think>", "é日")} <= choices
    spelled = guides.compile("choice", '["</s>"]').start(frozenset({NO_TEXT}))
    token_ids, has_ended = write(spelled, seeded(1))
    assert has_ended
    assert tokenizer.token_to_id("</s>") not in token_ids
    assert tokenizer.decode(token_ids) == "</s>"


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_guided_guesses_get_the_masks_they_would_get_step_by_step(guides: GrammarCompiler, data: st.DataObject) -> None:
    rng = seeded(data.draw(st.integers(0, 10**6)))
    kind, text = data.draw(
        st.sampled_from(
            [("regex", "(ab|[0-9]{2,4} )+"), ("json", ""), ("ebnf_grammar", 'root ::= "(" root ")" | [a-z]{0,3}')]
        )
    )
    grammar = guides.compile(kind, text)
    token_ids, _ = write(grammar.start(frozenset({NO_TEXT})), rng, most=data.draw(st.integers(1, 12)))
    num_taken = data.draw(st.integers(0, len(token_ids)))
    guide, alone = (grammar.start(frozenset({NO_TEXT})) for _ in range(2))
    for token_id in token_ids[:num_taken]:
        guide.advance(token_id)
        alone.advance(token_id)
    expected = allowed(alone)
    for token_id in token_ids[num_taken:]:
        alone.advance(token_id)
        expected += allowed(alone)
    assert allowed(guide, tuple(token_ids[num_taken:])) == expected
    assert allowed(guide) == expected[:1]
    wrong = data.draw(st.sampled_from(sorted(set(range(VOCAB_SIZE)) - expected[0] - {NO_TEXT})))
    assert allowed(guide, (wrong, wrong))[0] == expected[0]
    assert allowed(guide) == expected[:1]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6).filter(any), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_guided_every_choice_and_nothing_else_can_be_written(
    guides: GrammarCompiler, tokenizer: Tokenizer, choices: list[str], seed: int
) -> None:
    grammar = guides.compile("choice", json.dumps(choices))
    for choice in choices:
        assert accepts(tokenizer, grammar, choice)
    token_ids, has_ended = write(grammar.start(frozenset({NO_TEXT})), seeded(seed))
    assert has_ended
    assert tokenizer.decode(token_ids, skip_special_tokens=False) in choices


EXPRESSIONS = st.recursive(
    st.sampled_from([r"a", r"b", r"é", r"\d", r"[a-c]", r"[^a\n]", r"\.", r"/", r"\\", r".", r"(?i:x)", r"\n", r" "]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        inner.flatmap(lambda part: st.sampled_from([f"({part})*", f"({part})+", f"({part})?", f"({part}){{1,3}}"])),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_guided_what_is_written_matches_the_expression(
    guides: GrammarCompiler, tokenizer: Tokenizer, expression: str, seed: int
) -> None:
    token_ids, has_ended = write(guides.compile("regex", expression).start(frozenset({NO_TEXT})), seeded(seed))
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    assert not has_ended or re.fullmatch(expression, text, re.ASCII)


@given(EXPRESSIONS, st.text("ab1c.x \n/\\é", max_size=6))
@settings(max_examples=150, deadline=None)
def test_guided_a_text_is_accepted_if_it_matches_the_expression_and_only_then(
    guides: GrammarCompiler, tokenizer: Tokenizer, expression: str, text: str
) -> None:
    grammar = guides.compile("regex", expression)
    assert accepts(tokenizer, grammar, text) == (re.fullmatch(expression, text, re.ASCII) is not None)


def test_guided_a_guide_that_was_given_what_it_does_not_allow_allows_nothing_more(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    for wrong in (*encode(tokenizer, "z"), *encode(tokenizer, "<unk>")):
        guide = guides.compile("regex", "ab").start(frozenset({NO_TEXT}))
        guide.advance(wrong)
        assert allowed(guide) == [set()]
        assert not guide.is_finished


@given(EXPRESSIONS, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_guided_a_text_is_finished_where_nothing_may_follow_and_only_there(
    guides: GrammarCompiler, expression: str, seed: int
) -> None:
    guide, rng = guides.compile("regex", expression).start(frozenset()), seeded(seed)
    for _ in range(20):
        choices = allowed(guide)[0]
        assert guide.is_finished == (not choices)
        if not choices:
            break
        guide.advance(rng.choice(sorted(choices)))


@pytest.mark.parametrize("end_ids", [frozenset(), frozenset({2})])
def test_guided_a_text_is_finished_where_no_token_spells_what_may_follow(end_ids: frozenset[int]) -> None:
    texts = [bytes([code]) if code > 2 else b"" for code in range(128)]
    tokenizer_info = TokenizerInfo(Vocabulary(128, [*texts, b""], None))
    grammar = CompiledGrammar(
        tokenizer_info,
        lark_grammar("choice", json.dumps(["a", "a\u20ac", "b", "bb"])),
        10_000,
        GuideMemory(1 << 30).take,
    )
    ended, open_ended = grammar.start(end_ids), grammar.start(end_ids)
    ended.advance(ord("a"))
    open_ended.advance(ord("b"))
    assert ended.is_finished
    assert not open_ended.is_finished
