r"""EBNF as llama.cpp's GBNF and TensorRT-LLM write it, read into a tree.

    root ::= greeting ", " name "!"   # a grammar begins at root
    greeting ::= "Hello" | "Hi" " there"?
    name ::= [A-Z] [a-z]{1,20}

Literals and classes have the escapes \n \r \t \\ \" \' \[ \] \- \^ \xHH \uHHHH \UHHHHHHHH; `.` is any character; `( )`
groups, and `* + ?` and `{2} {2,} {2,5}` repeat. Line ends mean nothing.

Owns the syntax. Never knows what a tree is turned into.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class EbnfError(Exception):
    """A text that is not a grammar; the message says in which line and why."""


@dataclass(frozen=True)
class Literal:
    """A text that must stand there exactly."""

    text: str


@dataclass(frozen=True)
class CharacterClass:
    """One character of a class, as a regular expression."""

    pattern: str


@dataclass(frozen=True)
class Reference:
    """A reference to another rule."""

    name: str


@dataclass(frozen=True)
class Concatenation:
    """A series of parts, one after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alternatives:
    """A choice among options."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repetition:
    """A node that is repeated; `bounds` is `*`, `+`, `?` or a pair in braces."""

    node: Node
    bounds: str


Node = Literal | CharacterClass | Reference | Concatenation | Alternatives | Repetition


def parse_rules(text: str) -> dict[str, Node]:
    """Parse a grammar; return its rules by name.

    Raises:
        EbnfError: the text is not a grammar.
    """
    return _Parser(text).rules()


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


class _Parser:
    """A recursive-descent parser over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._next = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        """Return all rules by name."""
        rules: dict[str, Node] = {}
        while self._peek() != "end":
            name = self._take("rule")
            if name in rules:
                raise self._error(f"the rule {name} is defined twice")
            rules[name] = self._choice()
        return rules

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self._take("|")
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Alternatives(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() in {"literal", "class", "name", "("}:
            part, num_repeats = self._part(), 0
            while self._peek() == "repeat":
                part, num_repeats = Repetition(part, self._bounds()), num_repeats + 1
                if num_repeats > _MAX_REPEATS_OF_REPEATS:
                    raise self._error(f"too many repeats in a row: at most {_MAX_REPEATS_OF_REPEATS}")
            parts.append(part)
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _part(self) -> Node:
        kind = self._peek()
        if kind == "literal":
            return Literal("".join(chr(code) for code in self._characters(self._take(kind)[1:-1])))
        if kind == "class":
            return CharacterClass(self._class_pattern(self._take(kind)))
        if kind == "name":
            return Reference(self._take(kind))
        self._take("(")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"groups are nested too deeply: at most {_MAX_DEPTH}")
        inner = self._choice()
        self._take(")")
        self._depth -= 1
        return inner

    def _bounds(self) -> str:
        text = re.sub(r"\s", "", self._take("repeat"))
        if text[0] != "{":
            return text
        least, comma, most = text[1:-1].partition(",")
        if max(int(least or 0), int(most or 0)) > _MAX_REPEATS:
            raise self._error(f"{text} repeats too often: at most {_MAX_REPEATS}")
        if comma and most and int(least or 0) > int(most):
            raise self._error(f"{text} has its bounds the wrong way round")
        return f"{{{int(least or 0)}{comma}{most}}}"

    def _class_pattern(self, text: str) -> str:
        if text == ".":
            return "(?s:.)"
        body, negated = (text[2:-1], "^") if text.startswith("[^") else (text[1:-1], "")
        if not body:
            raise self._error(f"the class {text} is empty")
        pattern = "".join("-" if code == _RANGE else f"\\x{{{code:x}}}" for code in self._characters(body, True))
        return f"[{negated}{pattern}]"

    def _characters(self, text: str, in_class: bool = False) -> Iterator[int]:
        """Yield code points; in a class, `_RANGE` stands for the `-` of a range."""
        for found in _CHARACTER.finditer(text):
            piece = found.group()
            is_inside = found.start() > 0 and found.end() < len(text)
            if piece == "-" and in_class and is_inside:
                yield _RANGE
            elif piece[0] != "\\":
                yield ord(piece)
            elif piece[1] in _ESCAPES:
                yield ord(_ESCAPES[piece[1]])
            elif len(piece) > 2:
                code = int(piece[2:], 16)
                if code > _LAST_CODE_POINT or code in _SURROGATES:
                    raise self._error(f"{piece} is not a character")
                yield code
            else:
                raise self._error(f"{piece} is an unknown escape")

    def _peek(self) -> str:
        return self._tokens[self._next].kind

    def _take(self, kind: str) -> str:
        token = self._tokens[self._next]
        if token.kind != kind:
            raise self._error(f"expected {_NAMES.get(kind, kind)}, not {token.text[:20] or 'the end'!r}")
        self._next += 1
        return token.text

    def _error(self, problem: str) -> EbnfError:
        return EbnfError(f"line {self._text.count(chr(10), 0, self._tokens[self._next].offset) + 1}: {problem}")

    def _scan(self) -> Iterator[_Token]:
        offset = 0
        while offset < len(self._text):
            found = _TOKEN.match(self._text, offset)
            if found is None:
                line = self._text.count("\n", 0, offset) + 1
                raise EbnfError(f"line {line}: nothing begins with {self._text[offset : offset + 20]!r}")
            kind = found.lastgroup
            if kind == "mark":
                yield _Token(found.group(), found.group(), offset)
            elif kind is not None:
                yield _Token(kind, found.group(kind), offset)
            offset = found.end()
        yield _Token("end", "", offset)


_RANGE = -1
_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_MAX_DEPTH = 50
_MAX_REPEATS = 10_000
_MAX_REPEATS_OF_REPEATS = 4
_NAMES = {"rule": "a rule (name ::=)", "end": "the end"}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"} | {c: c for c in "\\\"'[]-^/"}
_CHARACTER = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)|.", re.DOTALL)
_TOKEN = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<rule>[A-Za-z_][\w-]*)(?=\s*::=)\s*::=
    | (?P<name>[A-Za-z_][\w-]*)
    | (?P<literal>"(?:[^"\\\n]|\\.)*")
    | (?P<class>\[(?:[^\]\\\n]|\\.)*\]|\.)
    | (?P<repeat>[*+?]|\{\s*\d{1,9}\s*(?:,\s*(?:\d{1,9}\s*)?)?\}|\{\s*,\s*\d{1,9}\s*\})
    | (?P<mark>[|()])""",
    re.VERBOSE,
)
