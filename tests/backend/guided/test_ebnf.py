"""Grammars in EBNF, against recognizers that know nothing of grammars."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.fakes.guides import FAMILY, NO_TEXT, accepts, guides_for, seeded, write
from tests.tokenizer_zoo import tokenizer_of
from trident_backend.guided import ebnf
from trident_backend.guided.compiler import CompiledGrammar, GrammarCompiler, max_items
from trident_backend.guided.ebnf_parser import Node
from trident_backend.guided.grammars import lark_grammar
from trident_backend.guided.memory import GuideMemory
from trident_backend.guided.vocabulary import TokenizerInfo, Vocabulary
from trident_ensemble.contract.errors import RequestError

BALANCED = 'root ::= ("(" root ")" | "[" root "]")*'
PALINDROME = 'root ::= "a" root "a" | "b" root "b" | "a" | "b" | ""'
NO_LEXER = 'root ::= pair\npair ::= [a-z]* "b" | "(" pair ")"'
NO_LEXEMES = 'root ::= ("a" | "ab") ("c" | "bcd") root | ""'
EXPRESSION = r"""
root ::= term (("+" | "-") term)*    # sums
term ::= factor ("*" factor)*
factor ::= [1-9] [0-9]{0,3} | "(" root ")"
    | name
name ::= [a-z_] [a-z0-9_]*
"""


def is_balanced(text: str) -> bool:
    """Whether every bracket is closed by its like, and nothing else stands there."""
    while "()" in text or "[]" in text:
        text = text.replace("()", "").replace("[]", "")
    return not text


def is_palindrome(text: str) -> bool:
    """Of a and b."""
    return text == text[::-1] and set(text) <= {"a", "b"}


def ends_in_b(text: str) -> bool:
    """Letters that end in b, in any number of parentheses."""
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return re.fullmatch("[a-z]*b", text) is not None


def is_sum(text: str) -> bool:
    """Whether Python reads it as an expression of + - * alone."""
    if not re.fullmatch(r"[-a-z0-9_+*()]+", text) or "**" in text or re.search(r"(?<!\w)(0|\d{5}|\d+[a-z_])", text):
        return False
    try:
        tree = ast.parse(re.sub("[a-z_][a-z0-9_]*", "x", text), mode="eval")
    except SyntaxError:
        return False
    known = ast.Expression | ast.BinOp | ast.Constant | ast.Name | ast.operator | ast.expr_context
    return all(isinstance(node, known) for node in ast.walk(tree)) and "()" not in text


GRAMMARS: dict[str, tuple[str, Callable[[str], bool], str]] = {
    "balanced": (BALANCED, is_balanced, "()[]"),
    "palindrome": (PALINDROME, is_palindrome, "ab"),
    "no lexer": (NO_LEXER, ends_in_b, "ab()"),
    "no lexemes": (NO_LEXEMES, lambda text: re.fullmatch("((a|ab)(c|bcd))*", text) is not None, "abcd"),
    "sums": (EXPRESSION, is_sum, "1x+*()0"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(FAMILY)


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return guides_for(tokenizer, tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("name", GRAMMARS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_ebnf_what_is_written_is_of_the_language(
    guides: GrammarCompiler, tokenizer: Tokenizer, name: str, seed: int
) -> None:
    grammar, recognizes, _ = GRAMMARS[name]
    token_ids, has_ended = write(
        guides.compile("ebnf_grammar", grammar).start(frozenset({NO_TEXT})), seeded(seed), most=60
    )
    assert not has_ended or recognizes(tokenizer.decode(token_ids))


@pytest.mark.parametrize("name", GRAMMARS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_ebnf_a_text_is_accepted_if_it_is_of_the_language_and_only_then(
    guides: GrammarCompiler, tokenizer: Tokenizer, name: str, data: st.DataObject
) -> None:
    grammar, recognizes, letters = GRAMMARS[name]
    text = data.draw(st.text(letters, max_size=9))
    if name == "no lexemes":
        text = "".join(data.draw(st.lists(st.sampled_from(["ac", "abc", "abcd", "abbcd", "b", "d"]), max_size=4)))
    if name == "palindrome" and data.draw(st.booleans()):
        text += text[::-1]
    assert accepts(tokenizer, guides.compile("ebnf_grammar", grammar), text) == recognizes(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grammar", "expression"),
    [
        ('root ::= greeting ", " name "!"\ngreeting ::= "Hello" | "Hi" " there"?\nname ::= [A-Z] [a-z]{1,3}',
         r"(Hello|Hi( there)?), [A-Z][a-z]{1,3}!"),
        (r'root ::= [^a-c\n\]]+ | "\"\\\x41\u00e9" | [\-x^] {2}', r'[^a-c\n\]]+|"\\Aé|[-x^]{2}'),
        ("root ::= .{3,} | [a-] | [+--] | [--/] [-d]", r"(?s:.{3,})|[-a]|[+,-]|[-./][-d]"),
        ('root ::= ("a" | "ab") ("c" | "bcd") "d"*', "(a|ab)(c|bcd)d*"),
    ],
)  # fmt: skip
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_ebnf_a_grammar_without_recursion_is_an_expression(
    guides: GrammarCompiler, tokenizer: Tokenizer, grammar: str, expression: str, data: st.DataObject
) -> None:
    compiled = guides.compile("ebnf_grammar", grammar)
    text = data.draw(st.one_of(st.from_regex(expression, fullmatch=True), st.text('aAbcdé]\\"-x^\n,+', max_size=4)))
    assert accepts(tokenizer, compiled, text) == (re.fullmatch(expression, text) is not None)
    token_ids, has_ended = write(compiled.start(frozenset({NO_TEXT})), seeded(data.draw(st.integers(0, 10**6))))
    assert not has_ended or re.fullmatch(expression, tokenizer.decode(token_ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("", "no rule named root"),
        ('x ::= "a"', "no rule named root"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule root is defined twice"),
        ("root ::= x", "no rule named x"),
        ('root ::= "a', "line 1: nothing begins with"),
        ('root ::=\n ("a"', "line 2: expected ), not 'the end'"),
        ('root ::= "a" ) "b"', "line 1: expected a rule (name ::=), not ')'"),
        (r'root ::= "\q"', r"line 1: \q is an unknown escape"),
        (r'root ::= "\ud800"', r"\ud800 is not a character"),
        ("root ::= []", "the class [] is empty"),
        ("root ::= [z-a]", "invalid"),
        ('root ::= "a"{3,2}', "the wrong way round"),
        ('root ::= "a"{20000}', "repeats too often: at most 10000"),
        ("root ::= " + "(" * 60 + '"a"' + ")" * 60, "nested too deeply: at most 50"),
        ("root ::= a0 " + " ".join(f'a{i} ::= "x" a{i + 1}' for i in range(1001)) + ' a1001 ::= ""', "at most 1000"),
        ("root ::= a0 " + " ".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(99)) + ' a99 ::= "x"', "too large"),
        ("start: /a/", "line 1: nothing begins with"),
        ("root ::= <[3]>", "nothing begins with"),
        ('root ::= root "a"', "allows no text"),
        ('root ::= "a"' + "?" * 5000, "line 1: too many repeats in a row: at most 4"),
        (
            "root ::= "
            + " | ".join(f"a{i}" for i in range(100))
            + ' | "(" root ")"\n'
            + "\n".join(f"a{i} ::= [a-z]{{0,20}} root?" for i in range(100)),
            "1505 parts are too many where rules refer to themselves: at most 1000",
        ),
    ],
)
def test_ebnf_a_text_that_is_no_grammar_is_refused_with_its_place(
    guides: GrammarCompiler, grammar: str, problem: str
) -> None:
    with pytest.raises(RequestError) as caught:
        guides.compile("ebnf_grammar", grammar or " ")
    assert problem in caught.value.problem


AMBIGUOUS = ('root ::= root root root | root root | [a-z ] | ""', "root ::= (root | root root)* | [a-zA-Z ,.]")
JSON = r"""
root ::= object | array
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,3})? ws
ws ::= " "? | "\n" [ \t]{0,20}
"""


def test_ebnf_an_ambiguous_grammar_is_given_up_before_its_masks_grow_dear() -> None:
    texts = [letter * length for letter in (bytes([code]) for code in range(97, 123)) for length in range(1, 101)]
    tokenizer_info = TokenizerInfo(Vocabulary(len(texts), [*texts, b""], None))
    for grammar in AMBIGUOUS:
        with pytest.raises(RequestError, match="costs too much"):
            CompiledGrammar(
                tokenizer_info,
                lark_grammar("ebnf_grammar", grammar),
                max_items("ebnf_grammar"),
                GuideMemory(1 << 30).take,
            )


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (JSON, json.dumps([{"name": f"n{i}", "tags": ["a", [1, 2.5e3, {"x": None}]]} for i in range(30)])),
        (EXPRESSION, "+".join(f"(a*{i}+(b_{i}-c))" for i in range(1, 80))),
        ('root ::= list\nlist ::= list item | item\nitem ::= "(" item ")" | [a-z]+ ","', "(ab,)c," * 700),
        ('root ::= item*\nitem ::= "(" item ")" | [a-z]+ ","', "(ab,)c," * 700),
    ],
    ids=["json", "sums", "left-recursive list", "repeated"],
)
def test_ebnf_long_texts_of_ordinary_grammars_are_followed(
    guides: GrammarCompiler, tokenizer: Tokenizer, grammar: str, text: str
) -> None:
    assert accepts(tokenizer, guides.compile("ebnf_grammar", grammar), text)


def test_ebnf_the_work_for_a_grammar_is_proportional_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = 0
    references = ebnf._references

    def counted(node: Node) -> Iterator[str]:
        nonlocal visited
        visited += 1
        return references(node)

    monkeypatch.setattr(ebnf, "_references", counted)
    names = [f"a{number}" for number in range(900)]
    ebnf.lark_rules("root ::= " + " ".join(names * 4) + "\n" + "\n".join(f'{name} ::= "a"' for name in names))
    assert visited < 5 * 900 * 5


def test_ebnf_rules_that_the_root_does_not_need_are_left_out() -> None:
    assert ebnf.lark_rules('root ::= "a" other ::= "b" other') == "start: T0\nT0: /a/"
