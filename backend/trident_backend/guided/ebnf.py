r"""EBNF as llama.cpp's GBNF and TensorRT-LLM have it, rewritten in llguidance's language.

    root ::= greeting ", " name "!"   # a grammar begins at root
    greeting ::= "Hello" | "Hi" " there"?
    name ::= [A-Z] [a-z]{1,20}

Literals and classes know the escapes \n \r \t \\ \" \' \[ \] \- \^ \xHH \uHHHH \UHHHHHHHH; `.` is any character;
`( )` groups, and `* + ?` and `{2} {2,} {2,5}` repeat. Line ends mean nothing.

Owns the syntax, and keeps the language character by character: llguidance's lexer is greedy, so that `[a-z]* "b"` would
never end there. A grammar without recursion becomes one terminal; one with recursion has terminals of one character
alone. Never knows a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class EbnfError(Exception):
    """The text is no grammar; says where."""


@dataclass(frozen=True)
class _Literal:
    text: str


@dataclass(frozen=True)
class _Class:
    """One character, as a regular expression."""

    pattern: str


@dataclass(frozen=True)
class _Reference:
    name: str


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    node: _Node
    bounds: str


_Node = _Literal | _Class | _Reference | _Sequence | _Choice | _Repeat


def escaped(text: str) -> str:
    """A regular expression for exactly this text.

    Raises:
        UnicodeEncodeError: it holds half of a surrogate pair.
    """
    text.encode()
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def lark_rules(text: str) -> str:
    """The rules of a grammar in llguidance's language.

    Raises:
        EbnfError: the text is no grammar, or too large a one.
    """
    rules = _Parser(text).rules()
    if _ROOT not in rules:
        raise EbnfError(f"there is no rule named {_ROOT}, where the text begins")
    used = _used(rules)
    if len(used) > _MAX_RULES:
        raise EbnfError(f"{len(used)} rules are too many: at most {_MAX_RULES}")
    closed = _closed(rules, used)
    is_regular = len(closed) == len(used)
    if is_regular and _written_out(rules, closed) > _MAX_SIZE:
        raise EbnfError(f"too large with every rule written out: at most {_MAX_SIZE} parts")
    if not is_regular and (size := sum(_size(rules[name], {}) for name in used)) > _MAX_RECURSIVE_SIZE:
        raise EbnfError(f"{size} parts are too many where rules refer to themselves: at most {_MAX_RECURSIVE_SIZE}")
    numbers = {name: number for number, name in enumerate(used)}
    prefix = "T" if is_regular else "r"
    lines = [f"start: {prefix}{numbers[_ROOT]}"]
    for name in used:
        lines.append(f"{prefix}{numbers[name]}: {_lark(rules[name], numbers, is_regular)}")
    return "\n".join(lines)


def _lark(node: _Node, numbers: dict[str, int], is_regular: bool) -> str:
    if isinstance(node, _Literal):
        characters = [escaped(node.text)] if is_regular else [escaped(character) for character in node.text]
        return " ".join(f"/{pattern}/" for pattern in characters if pattern) or '""'
    if isinstance(node, _Class):
        return f"/{node.pattern}/"
    if isinstance(node, _Reference):
        return f"{'T' if is_regular else 'r'}{numbers[node.name]}"
    if isinstance(node, _Repeat):
        return f"({_lark(node.node, numbers, is_regular)}){node.bounds}"
    parts = node.parts if isinstance(node, _Sequence) else node.options
    joined = (" " if isinstance(node, _Sequence) else " | ").join(_lark(part, numbers, is_regular) for part in parts)
    return f"({joined})" if joined else '""'


def _references(node: _Node) -> Iterator[str]:
    if isinstance(node, _Reference):
        yield node.name
    elif isinstance(node, _Repeat):
        yield from _references(node.node)
    elif isinstance(node, _Sequence | _Choice):
        for part in node.parts if isinstance(node, _Sequence) else node.options:
            yield from _references(part)


def _used(rules: dict[str, _Node]) -> list[str]:
    """The rules that the root needs, in the order in which they are met."""
    used = {_ROOT: None}
    pending = [_ROOT]
    while pending:
        for name in _references(rules[pending.pop()]):
            if name not in rules:
                raise EbnfError(f"there is no rule named {name}")
            if name not in used:
                used[name] = None
                pending.append(name)
    return list(used)


def _closed(rules: dict[str, _Node], used: list[str]) -> list[str]:
    """Those rules that never come back to themselves, each behind all that it refers to."""
    missing = {name: set(_references(rules[name])) for name in used}
    users: dict[str, list[str]] = {name: [] for name in used}
    for name, references in missing.items():
        for reference in references:
            users[reference].append(name)
    closed = [name for name in used if not missing[name]]
    for name in closed:
        for user in users[name]:
            missing[user].discard(name)
            if not missing[user]:
                closed.append(user)
    return closed


def _written_out(rules: dict[str, _Node], closed: list[str]) -> int:
    """Parts of the last of these rules with every reference replaced; anything beyond the bound."""
    sizes: dict[str, int] = {}
    for name in closed:
        sizes[name] = min(_size(rules[name], sizes), _MAX_SIZE + 1)
    return sizes[closed[-1]]


def _size(node: _Node, sizes: Mapping[str, int]) -> int:
    """Parts of a node, references being as large as `sizes` says, or one."""
    if isinstance(node, _Reference):
        return sizes.get(node.name, 1)
    if isinstance(node, _Repeat):
        return (1 if len(node.bounds) == 1 else _BOUNDED_SIZE) + _size(node.node, sizes)
    if isinstance(node, _Sequence | _Choice):
        return 1 + sum(_size(part, sizes) for part in (node.parts if isinstance(node, _Sequence) else node.options))
    return 1


class _Token(NamedTuple):
    kind: str
    text: str
    place: int


class _Parser:
    """Recursive descent over the text's tokens."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._next = 0
        self._depth = 0

    def rules(self) -> dict[str, _Node]:
        """All rules by name."""
        rules: dict[str, _Node] = {}
        while self._peek() != "end":
            name = self._take("rule")
            if name in rules:
                raise self._error(f"the rule {name} stands twice")
            rules[name] = self._choice()
        return rules

    def _choice(self) -> _Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self._take("|")
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._peek() in {"literal", "class", "name", "("}:
            part, num_repeats = self._part(), 0
            while self._peek() == "repeat":
                part, num_repeats = _Repeat(part, self._bounds()), num_repeats + 1
                if num_repeats > _MAX_REPEATS_OF_REPEATS:
                    raise self._error(f"repeats stand in a row: at most {_MAX_REPEATS_OF_REPEATS}")
            parts.append(part)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _part(self) -> _Node:
        kind = self._peek()
        if kind == "literal":
            return _Literal("".join(chr(code) for code in self._characters(self._take(kind)[1:-1])))
        if kind == "class":
            return _Class(self._class_pattern(self._take(kind)))
        if kind == "name":
            return _Reference(self._take(kind))
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
        """Code points; in a class, _RANGE for the `-` of a range."""
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
                    raise self._error(f"{piece} is no character")
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
        return EbnfError(f"line {self._text.count(chr(10), 0, self._tokens[self._next].place) + 1}: {problem}")

    def _scan(self) -> Iterator[_Token]:
        place = 0
        while place < len(self._text):
            found = _TOKEN.match(self._text, place)
            if found is None:
                line = self._text.count("\n", 0, place) + 1
                raise EbnfError(f"line {line}: nothing begins with {self._text[place : place + 20]!r}")
            kind = found.lastgroup
            if kind == "mark":
                yield _Token(found.group(), found.group(), place)
            elif kind is not None:
                yield _Token(kind, found.group(kind), place)
            place = found.end()
        yield _Token("end", "", place)


_ROOT = "root"
_RANGE = -1
_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_MAX_DEPTH = 50
_MAX_RULES = 1000
_MAX_SIZE = 50_000
#: Of what can refer to itself: at one place all of it may be open.
_MAX_RECURSIVE_SIZE = 1000
#: Of a repetition with bounds, which the parser writes out.
_BOUNDED_SIZE = 10
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
