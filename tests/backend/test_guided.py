"""Guides follow their grammar to the token: what they allow, where they end, what they refuse."""

from __future__ import annotations

import json
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import Tokenizer

from tests.tokenizer_zoo import tokenizer_of
from trident_backend.guide import Guide
from trident_backend.guided import compiler as compiler_module
from trident_backend.guided.compiler import Alphabet, CompiledGrammar, GuideCompiler
from trident_backend.guided.grammars import lark_grammar
from trident_backend.guided.vocabulary import Vocabulary
from trident_ensemble.errors import RequestError

#: More than any tokenizer of the zoo has, and no multiple of 32.
VOCAB_SIZE = 1001
NO_TEXT = VOCAB_SIZE - 1
FAMILY = "byte_level_bpe"


def seeded(seed: int) -> random.Random:
    """Random numbers of a test."""
    return random.Random(seed)  # noqa: S311 (no secrets)


def guides_for(tokenizer: Tokenizer, folder: Path, **options: int) -> GuideCompiler:
    """A compiler for an engine folder with this tokenizer."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    return GuideCompiler(folder, VOCAB_SIZE, **options)


def allowed(guide: Guide, draft_ids: tuple[int, ...] = ()) -> list[set[int]]:
    """The tokens that the guide allows now and after each guess; nothing beyond the vocabulary."""
    masks = np.full((1 + len(draft_ids), -(-VOCAB_SIZE // 32)), 0xFFFFFFFF, np.uint32)
    guide.fill(draft_ids, masks)
    rows = [np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() for mask in masks]
    assert all(max(row, default=0) < VOCAB_SIZE for row in rows)
    return [set(row) for row in rows]


def follow(guide: Guide, token_ids: list[int]) -> bool:
    """Whether the guide allows these tokens; it has followed them then."""
    for token_id in token_ids:
        if token_id not in allowed(guide)[0]:
            return False
        guide.advance(token_id)
    return True


def write(
    guide: Guide, rng: random.Random, *, end_id: int = NO_TEXT, closers: frozenset[int] = frozenset(), most: int = 300
) -> tuple[list[int], bool]:
    """A random text of the guide, and whether it has come to its end; closers are preferred half of the time."""
    token_ids: list[int] = []
    while len(token_ids) < most:
        choices = allowed(guide)[0]
        assert choices, "a guide that is not finished allows something"
        preferred = sorted(choices & (closers | {end_id}))
        token_id = rng.choice(preferred if preferred and rng.random() < 0.5 else sorted(choices))
        if token_id == end_id:
            return token_ids, True
        token_ids.append(token_id)
        guide.advance(token_id)
        if guide.is_finished:
            assert allowed(guide)[0] == {end_id}
            return token_ids, True
    return token_ids, False


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(FAMILY)


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> GuideCompiler:
    return guides_for(tokenizer, tmp_path_factory.mktemp("engine"))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text."""
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return token_ids


def accepts(tokenizer: Tokenizer, grammar: CompiledGrammar, text: str) -> bool:
    """Whether the text can be written, and may end."""
    guide = grammar.start(frozenset({NO_TEXT}))
    return follow(guide, encode(tokenizer, text)) and NO_TEXT in allowed(guide)[0]


def test_every_token_that_the_expression_allows_is_allowed_and_no_other(
    guides: GuideCompiler, tokenizer: Tokenizer
) -> None:
    guide = guides.compile("regex", "[a-z]{1,3}").start(frozenset({NO_TEXT}))
    texts = {token_id: tokenizer.decode([token_id]) for token_id in range(tokenizer.get_vocab_size())}
    left = 3
    for token_id in encode(tokenizer, "t") + encode(tokenizer, "h"):
        expected = {other for other, text in texts.items() if re.fullmatch(f"[a-z]{{1,{left}}}", text)}
        assert allowed(guide)[0] == expected | ({NO_TEXT} if left < 3 else set())
        guide.advance(token_id)
        left -= 1


def test_the_end_is_allowed_exactly_where_the_text_may_end(guides: GuideCompiler, tokenizer: Tokenizer) -> None:
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


def test_a_token_of_text_that_ends_the_text_is_allowed_at_the_end_alone(
    guides: GuideCompiler, tokenizer: Tokenizer
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


def test_without_end_ids_nothing_ends_the_text(guides: GuideCompiler, tokenizer: Tokenizer) -> None:
    guide = guides.compile("choice", '["yes", "yes sir"]').start(frozenset())
    assert follow(guide, encode(tokenizer, "yes"))
    assert not guide.is_finished
    assert follow(guide, encode(tokenizer, " sir"))
    assert guide.is_finished
    assert allowed(guide) == [set()]


def test_special_tokens_are_never_allowed_and_added_ones_are_text(guides: GuideCompiler, tokenizer: Tokenizer) -> None:
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
def test_guesses_get_the_masks_they_would_get_step_by_step(guides: GuideCompiler, data: st.DataObject) -> None:
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
def test_every_choice_and_nothing_else_can_be_written(
    guides: GuideCompiler, tokenizer: Tokenizer, choices: list[str], seed: int
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
def test_what_is_written_matches_the_expression(
    guides: GuideCompiler, tokenizer: Tokenizer, expression: str, seed: int
) -> None:
    token_ids, has_ended = write(guides.compile("regex", expression).start(frozenset({NO_TEXT})), seeded(seed))
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    assert not has_ended or re.fullmatch(expression, text, re.ASCII)


@given(EXPRESSIONS, st.text("ab1c.x \n/\\é", max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_text_is_accepted_if_it_matches_the_expression_and_only_then(
    guides: GuideCompiler, tokenizer: Tokenizer, expression: str, text: str
) -> None:
    grammar = guides.compile("regex", expression)
    assert accepts(tokenizer, grammar, text) == (re.fullmatch(expression, text, re.ASCII) is not None)


def test_a_guide_that_was_given_what_it_does_not_allow_allows_nothing_more(
    guides: GuideCompiler, tokenizer: Tokenizer
) -> None:
    for wrong in (*encode(tokenizer, "z"), *encode(tokenizer, "<unk>")):
        guide = guides.compile("regex", "ab").start(frozenset({NO_TEXT}))
        guide.advance(wrong)
        assert allowed(guide) == [set()]
        assert not guide.is_finished


def test_the_same_guide_is_compiled_once_while_it_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path, max_grammars=2)
    first = guides.compile("regex", "a")
    assert guides.compile("regex", "a") is first
    assert guides.compile("choice", '["a"]') is not first
    assert guides.compile("regex", "a") is first
    guides.compile("regex", "b")
    guides.compile("regex", "c")
    assert guides.compile("regex", "a") is not first


def test_any_number_of_threads_may_compile_and_start(tokenizer: Tokenizer, tmp_path: Path) -> None:
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


def test_sequences_of_one_grammar_do_not_use_up_each_others_bounds(
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
    renewed: list[str] = []
    renew = Alphabet.matcher

    def counted(alphabet: Alphabet, text: str, max_items: int) -> LLMatcher:
        renewed.append(text)
        return renew(alphabet, text, max_items)

    monkeypatch.setattr(Alphabet, "matcher", counted)
    for _ in range(5):
        assert set(letters.values()) <= allowed(grammar.start(frozenset({NO_TEXT})))[0]
    assert len(renewed) == 1


def test_a_guess_that_uses_up_what_is_shared_fails_nobody(
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
        ("structural_tag", "{}", "guided_decoding_guide_type", "'structural_tag' is not among those that are known"),
        ("", "a", "guided_decoding_guide_type", "known: json, json_schema, regex, choice, ebnf_grammar"),
        ("regex", "", "guided_decoding_guide", "is missing or empty"),
        ("regex", "x" * 70_000, "guided_decoding_guide", "70000 bytes are too many: at most 65536"),
        ("regex", "[a", "guided_decoding_guide", "unclosed character class"),
        ("regex", "(?=a)b", "guided_decoding_guide", "look-around"),
        ("regex", "a\\", "guided_decoding_guide", "ends in a single backslash"),
        ("regex", "\ud800", "guided_decoding_guide", "is no text"),
        ("regex", "a*&&[^\\s\\S]", "guided_decoding_guide", "allows no text"),
        ("choice", '"yes"', "guided_decoding_guide", "a JSON list of at least one string"),
        ("choice", "[]", "guided_decoding_guide", "a JSON list of at least one string"),
        ("choice", '["a", 1]', "guided_decoding_guide", "a JSON list of at least one string"),
        ("choice", '[""]', "guided_decoding_guide", "allows no text"),
        ("choice", '["\\ud800"]', "guided_decoding_guide", "is no text"),
        ("choice", "[" * 60_000, "guided_decoding_guide", "nested too deeply"),
        ("json_schema", "{", "guided_decoding_guide", "is no JSON"),
        ("json_schema", '{"const": NaN}', "guided_decoding_guide", "NaN is no JSON"),
        ("json_schema", "[]", "guided_decoding_guide", "must be an object"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "guided_decoding_guide", "uniqueItems"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "guided_decoding_guide", "minimum (3)"),
        ("json_schema", '{"$ref": "#/$defs/none"}', "guided_decoding_guide", "none"),
        ("json_schema", '{"$ref": "file:///etc/passwd"}', "guided_decoding_guide", "file:///etc/passwd"),
        ("json_schema", '{"$ref": "#"}', "guided_decoding_guide", "allows no text"),
        ("json_schema", '{"type": "integer", "multipleOf": 999983}', "guided_decoding_guide", "at most 20000"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_reason(
    guides: GuideCompiler, kind: str, guide: str, field: str, problem: str
) -> None:
    with pytest.raises(RequestError) as caught:
        guides.compile(kind, guide)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert len(caught.value.problem) < 600


def test_a_schema_cannot_turn_its_own_checks_off(guides: GuideCompiler) -> None:
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
def test_a_hostile_guide_costs_little_and_harms_nobody(guides: GuideCompiler, kind: str, guide: str) -> None:
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


def test_a_limit_that_would_be_met_again_ends_the_sequence_without_compiling(
    guides: GuideCompiler, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,), (last,) = encode(tokenizer, "a"), encode(tokenizer, "b")
    guide = guides.compile("ebnf_grammar", 'root ::= "a" root | "b"').start(frozenset({NO_TEXT}))
    compiled: list[str] = []
    renew = Alphabet.matcher

    def counted(alphabet: Alphabet, text: str, max_items: int) -> LLMatcher:
        compiled.append(text)
        return renew(alphabet, text, max_items)

    monkeypatch.setattr(Alphabet, "matcher", counted)
    for _ in range(2500):
        guide.advance(letter)
    assert last in allowed(guide, (last,))[0]
    guide.advance(last)
    assert allowed(guide) == [set()]
    assert not guide.is_finished
    assert not compiled


def test_a_lexer_without_end_is_given_up_before_it_takes_the_memory(
    guides: GuideCompiler, tokenizer: Tokenizer
) -> None:
    guide = guides.compile("regex", "[^\n]{0,20000}").start(frozenset({NO_TEXT}))
    letters = encode(tokenizer, "abcdefgh")
    num_letters = 0
    while allowed(guide)[0] and num_letters < 20_000:
        guide.advance(letters[num_letters % len(letters)])
        num_letters += 1
    assert 1000 < num_letters < 8000


def test_sixteen_grammars_are_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    guides = guides_for(tokenizer, tmp_path)
    grammars = [guides.compile("regex", f"a{{{number}}}") for number in range(1, 17)]
    assert guides.compile("regex", "a{1}") is grammars[0]
    guides.compile("regex", "b")
    assert guides.compile("regex", "a{2}") is not grammars[1]


@given(EXPRESSIONS, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_text_is_finished_where_nothing_may_follow_and_only_there(
    guides: GuideCompiler, expression: str, seed: int
) -> None:
    guide, rng = guides.compile("regex", expression).start(frozenset()), seeded(seed)
    for _ in range(20):
        choices = allowed(guide)[0]
        assert guide.is_finished == (not choices)
        if not choices:
            break
        guide.advance(rng.choice(sorted(choices)))


@pytest.mark.parametrize("end_ids", [frozenset(), frozenset({2})])
def test_a_text_is_finished_where_no_token_spells_what_may_follow(end_ids: frozenset[int]) -> None:
    texts = [bytes([code]) if code > 2 else b"" for code in range(128)]
    alphabet = Alphabet(Vocabulary(128, [*texts, b""], None))
    grammar = CompiledGrammar(alphabet, lark_grammar("choice", json.dumps(["a", "a\u20ac", "b", "bb"])), 10_000)
    ended, open_ended = grammar.start(end_ids), grammar.start(end_ids)
    ended.advance(ord("a"))
    open_ended.advance(ord("b"))
    assert ended.is_finished
    assert not open_ended.is_finished
