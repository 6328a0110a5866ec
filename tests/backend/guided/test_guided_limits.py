"""Guides that cost too much, that many use at a time, that are kept and dropped: nobody else feels them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer

from tests.fakes.guides import (
    FAMILY,
    NO_TEXT,
    allowed,
    encode,
    guides_for,
    seeded,
    write,
)
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.guided import compiler as compiler_module
from trident_backend.guided.compiler import GrammarCompiler
from trident_backend.guided.vocabulary import TokenizerInfo
from trident_ensemble.contract.errors import RequestError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(FAMILY)


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return guides_for(tokenizer, tmp_path_factory.mktemp("engine"))


def test_guided_limits_the_same_guide_is_compiled_once_while_it_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path, max_grammars=2)
    first = guides.compile("regex", "a")
    assert guides.compile("regex", "a") is first
    assert guides.compile("choice", '["a"]') is not first
    assert guides.compile("regex", "a") is first
    guides.compile("regex", "b")
    guides.compile("regex", "c")
    assert guides.compile("regex", "a") is not first


def test_guided_limits_any_number_of_threads_may_compile_and_start(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path, max_grammars=3)
    wrong: list[str] = []

    def ask(seed: int) -> None:
        rng = seeded(seed)
        for _ in range(30):
            choices = [f"choice {rng.randrange(5)}", "another"]
            guide = guides.compile("choice", json.dumps(choices)).start(frozenset({NO_TEXT}))
            text = tokenizer.decode(write(guide, rng)[0])
            if text not in choices:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_guided_limits_sequences_of_one_grammar_do_not_use_up_each_others_bounds(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "_MAX_LEXER_STATES", 400)
    grammar = guides_for(tokenizer, tmp_path).compile("regex", "(a|b|c)*a(a|b|c){12}")
    letters = {letter: encode(tokenizer, letter)[0] for letter in "abc"}
    victim = grammar.start(frozenset({NO_TEXT}))
    victim.advance(letters["a"])
    greedy = grammar.start(frozenset({NO_TEXT}))
    rng = seeded(0)
    for _ in range(2000):
        if not allowed(greedy)[0]:
            break
        greedy.advance(letters[rng.choice("abc")])
    assert not allowed(greedy)[0]
    for _ in range(20):
        assert set(letters.values()) <= allowed(victim, (letters["a"], letters["a"]))[2]
        victim.advance(letters["b"])
    assert not greedy.is_finished
    recompiled: list[str] = []
    new_matcher = TokenizerInfo.matcher

    def counted(tokenizer_info: TokenizerInfo, text: str, max_items: int, max_states: int) -> LLMatcher:
        recompiled.append(text)
        return new_matcher(tokenizer_info, text, max_items, max_states)

    monkeypatch.setattr(TokenizerInfo, "matcher", counted)
    for _ in range(5):
        assert set(letters.values()) <= allowed(grammar.start(frozenset({NO_TEXT})))[0]
    assert len(recompiled) == 1


def test_guided_limits_a_guess_that_uses_up_what_is_shared_fails_nobody(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "_MAX_LEXER_STATES", 150)
    guides = guides_for(tokenizer, tmp_path)
    letters = [encode(tokenizer, letter)[0] for letter in "abc"]
    for num_used in range(30, 100):
        grammar = guides.compile("regex", f"(a|b|c)*a(a|b|c){{12}}|d{{{num_used + 1}}}")
        other, guide = (grammar.start(frozenset({NO_TEXT})) for _ in range(2))
        rng = seeded(num_used)
        for _ in range(num_used):
            allowed(other)
            other.advance(rng.choice(letters))
        assert all(set(letters) <= choices for choices in allowed(guide, tuple(rng.choices(letters, k=6))))


@pytest.mark.parametrize(
    ("kind", "guide", "field", "problem"),
    [
        ("xml", "{}", "guided_decoding_guide_type", "'xml' is not one of the known types"),
        ("", "a", "guided_decoding_guide_type", "known types: json, json_schema, regex, choice, ebnf_grammar"),
        ("regex", "", "guided_decoding_guide", "is missing or empty"),
        (
            "regex",
            "x" * 70_000,
            "guided_decoding_guide",
            "70000 bytes are more than this field may have; at most 65536",
        ),
        ("regex", "[a", "guided_decoding_guide", "unclosed character class"),
        ("regex", "(?=a)b", "guided_decoding_guide", "look-around"),
        ("regex", "a\\", "guided_decoding_guide", "ends in a single backslash"),
        ("regex", "\ud800", "guided_decoding_guide", "is not valid text"),
        ("regex", "a*&&[^\\s\\S]", "guided_decoding_guide", "allows no text"),
        ("choice", '"yes"', "guided_decoding_guide", "a JSON list of at least one string"),
        ("choice", "[]", "guided_decoding_guide", "a JSON list of at least one string"),
        ("choice", '["a", 1]', "guided_decoding_guide", "a JSON list of at least one string"),
        ("choice", '[""]', "guided_decoding_guide", "allows no text"),
        ("choice", '["\\ud800"]', "guided_decoding_guide", "is not valid text"),
        ("choice", "[" * 60_000, "guided_decoding_guide", "nested too deeply"),
        ("json_schema", "{", "guided_decoding_guide", "is not valid JSON"),
        ("json_schema", '{"const": NaN}', "guided_decoding_guide", "NaN is not valid JSON"),
        ("json_schema", "[]", "guided_decoding_guide", "must be an object"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "guided_decoding_guide", "uniqueItems"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "guided_decoding_guide", "minimum (3)"),
        ("json_schema", '{"$ref": "#/$defs/none"}', "guided_decoding_guide", "none"),
        ("json_schema", '{"$ref": "file:///etc/passwd"}', "guided_decoding_guide", "file:///etc/passwd"),
        ("json_schema", '{"$ref": "#"}', "guided_decoding_guide", "allows no text"),
        ("json_schema", '{"type": "integer", "multipleOf": 999983}', "guided_decoding_guide", "at most 20000"),
    ],
)
def test_guided_limits_what_cannot_be_followed_is_refused_with_its_reason(
    guides: GrammarCompiler, kind: str, guide: str, field: str, problem: str
) -> None:
    with pytest.raises(RequestError) as caught:
        guides.compile(kind, guide)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert len(caught.value.problem) < 600


def test_guided_limits_a_schema_cannot_turn_its_own_checks_off(guides: GrammarCompiler) -> None:
    with pytest.raises(RequestError, match="uniqueItems"):
        guides.compile("json_schema", '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}')


@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("regex", "(([a-z]{1,1000}){1,1000}){1,1000}"),
        ("regex", "(" * 2000 + ")" * 2000),
        ("regex", "(.*a.{20})"),
        ("regex", "(x+x+)+y"),
        ("regex", "a{4294967295}"),
        ("json_schema", '{"items":' * 900 + "{}" + "}" * 900),
        ("json_schema", '{"type": "array", "minItems": 1000000, "items": {"type": "integer"}}'),
        ("json_schema", '{"type": "string", "minLength": 1000000, "maxLength": 2000000}'),
        (
            "ebnf_grammar",
            "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(500)) + '\na500 ::= "x"',
        ),
        ("ebnf_grammar", 'root ::= root root | root root root | "a" | ""'),
        ("ebnf_grammar", 'root ::= (("x"{0,10000} "y"){0,10000} root?){0,10000}'),
    ],
)
def test_guided_limits_a_hostile_guide_costs_little_and_harms_nobody(
    guides: GrammarCompiler, kind: str, guide: str
) -> None:
    try:
        hostile = guides.compile(kind, guide).start(frozenset({NO_TEXT}))
    except RequestError:
        return
    rng = seeded(0)
    for _ in range(30):
        choices = sorted(allowed(hostile)[0] - {NO_TEXT})
        if not choices:
            break
        hostile.advance(rng.choice(choices))


def test_guided_limits_a_limit_that_would_be_met_again_ends_the_sequence_without_compiling(
    guides: GrammarCompiler, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,), (last,) = encode(tokenizer, "a"), encode(tokenizer, "b")
    guide = guides.compile("ebnf_grammar", 'root ::= "a" root | "b"').start(frozenset({NO_TEXT}))
    compiled: list[str] = []
    new_matcher = TokenizerInfo.matcher

    def counted(tokenizer_info: TokenizerInfo, text: str, max_items: int, max_states: int) -> LLMatcher:
        compiled.append(text)
        return new_matcher(tokenizer_info, text, max_items, max_states)

    monkeypatch.setattr(TokenizerInfo, "matcher", counted)
    for _ in range(2500):
        guide.advance(letter)
    assert last in allowed(guide, (last,))[0]
    guide.advance(last)
    assert allowed(guide) == [set()]
    assert not guide.is_finished
    assert not compiled


def test_guided_limits_a_lexer_without_end_is_given_up_before_it_takes_the_memory(
    guides: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    guide = guides.compile("regex", "[^\n]{0,20000}").start(frozenset({NO_TEXT}))
    letters = encode(tokenizer, "abcdefgh")
    num_letters = 0
    while allowed(guide)[0] and num_letters < 20_000:
        guide.advance(letters[num_letters % len(letters)])
        num_letters += 1
    assert 1000 < num_letters < 8000


def test_guided_limits_sixteen_grammars_are_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path)
    grammars = [guides.compile("regex", f"a{{{number}}}") for number in range(1, 17)]
    assert guides.compile("regex", "a{1}") is grammars[0]
    guides.compile("regex", "b")
    assert guides.compile("regex", "a{2}") is not grammars[1]
