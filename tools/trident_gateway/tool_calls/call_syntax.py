"""The parts of a call, matched as they come: what stands before its arguments, and the arguments themselves.

Owns how far a call has been read. Never knows what becomes of text that is no call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from trident_ensemble.contract.model_card import Marker, ToolFormat


class Sign(Enum):
    """A part of a call's beginning that is not a fixed text."""

    #: White space, or none.
    BLANKS = auto()
    #: The name of a tool.
    NAME = auto()
    #: Letters and digits that the model gives a call.
    CALL_ID = auto()
    #: Where the arguments begin; the brace is theirs.
    OBJECT = auto()


@dataclass(frozen=True)
class Either:
    """One of several fixed texts, none of which begins another."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Marked:
    """A marker that is one token."""

    role: str


Part: TypeAlias = Sign | Either | Marked

_BLANKS = " \n\r\t"
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_MAX_NAME = 64


class Progress(Enum):
    """The state of the matching of a beginning."""

    MORE = auto()
    DONE = auto()
    FAILED = auto()


class Beginning:
    """The part of a call before its arguments.

    Args:
        parts: its parts, in order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._place = 0
        self._matched = ""
        #: The tool's name, as far as it has come.
        self.name = ""

    @property
    def is_past_name_key(self) -> bool:
        """Whether this can be nothing but a call: the key `"name"` has come."""
        return self._place > next((at for at, part in enumerate(self._parts) if part == _NAME_KEY), -1)

    def feed(self, text: str) -> tuple[int, Progress]:
        """Match text; return how many of its characters belong to the beginning."""
        for at, character in enumerate(text):
            while not self._takes(character):
                if not self._passes():
                    return at, Progress.FAILED
                if self._place == len(self._parts):
                    return at, Progress.DONE
            if self._parts[self._place] is Sign.OBJECT:
                return at, Progress.DONE
            if isinstance(part := self._parts[self._place], Either) and self._matched in part.texts:
                self._step()
                if self._place == len(self._parts):
                    return at + 1, Progress.DONE
        return len(text), Progress.MORE

    def mark(self, role: str) -> bool:
        """Match a marker; return whether it belongs here."""
        while self._passes():
            pass
        if self._place == len(self._parts) or self._parts[self._place] != Marked(role):
            return False
        self._step()
        return True

    def _takes(self, character: str) -> bool:
        """Add a character to the present part, if it can be of it."""
        part = self._parts[self._place]
        if part is Sign.BLANKS:
            return character in _BLANKS
        if part is Sign.OBJECT:
            return character == "{"
        if isinstance(part, Either):
            fits = any(text.startswith(self._matched + character) for text in part.texts)
        elif part is Sign.NAME or part is Sign.CALL_ID:
            fits = character in _NAME_CHARACTERS and len(self._matched) < _MAX_NAME
        else:
            fits = False
        if fits:
            self._matched += character
        return fits

    def _passes(self) -> bool:
        """Leave the present part if it may end here; return whether it may."""
        if self._place == len(self._parts):
            return False
        part = self._parts[self._place]
        if part is Sign.NAME:
            self.name = self._matched
        if part is Sign.BLANKS or ((part is Sign.NAME or part is Sign.CALL_ID) and self._matched):
            self._step()
            return True
        return False

    def _step(self) -> None:
        self._place += 1
        self._matched = ""


_MARKS = re.compile(r'["{}\[\]]')
_STRING_MARKS = re.compile(r'["\\]')


class Braces:
    """The nesting of JSON while it comes; it does not look at anything else.

    Args:
        depth: braces that are open already.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self.in_string = False
        self._is_escaped = False

    def end(self, text: str) -> int:
        """Return how many characters of a text belong to the JSON; -1 if all do, and it goes on."""
        place = 0
        while place < len(text):
            if self._is_escaped:
                self._is_escaped = False
                place += 1
                continue
            found = (_STRING_MARKS if self.in_string else _MARKS).search(text, place)
            if found is None:
                return -1
            place = found.end()
            mark = found.group()
            if mark == "\\":
                self._is_escaped = True
            elif mark == '"':
                self.in_string = not self.in_string
            elif mark in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return place
        return -1


def _text(*texts: str) -> Either:
    return Either(texts)


_NAME_KEY = _text('"name"')
#: Models mix up the two names of the arguments.
_OBJECT_CALL: tuple[Part, ...] = (
    Sign.BLANKS, _text("{"), Sign.BLANKS, _NAME_KEY, Sign.BLANKS, _text(":"), Sign.BLANKS, _text('"'), Sign.NAME,
    _text('"'), Sign.BLANKS, _text(","), Sign.BLANKS, _text('"arguments"', '"parameters"'), Sign.BLANKS, _text(":"),
    Sign.BLANKS, Sign.OBJECT,
)  # fmt: skip


#: The id that Mistral's models give a call; another is drawn for it.
ID: tuple[Part, ...] = (
    Sign.BLANKS, _text(","), Sign.BLANKS, _text('"id"'), Sign.BLANKS, _text(":"), Sign.BLANKS, _text('"'), Sign.CALL_ID,
    _text('"'),
)  # fmt: skip


@dataclass(frozen=True)
class CallSyntax:
    """The way in which a format writes its calls.

    Args:
        first: before the arguments of the call that follows the marker.
        is_object: a call is an object, of which the arguments are a part.
        is_listed: calls are the elements of a list.
        is_bare: a call may begin the answer without a marker.
    """

    first: tuple[Part, ...]
    is_object: bool = True
    is_listed: bool = False
    is_bare: bool = False

    @property
    def next(self) -> tuple[Part, ...]:
        """What stands before the arguments of a list's further calls, behind the comma."""
        return _OBJECT_CALL


def syntax_of(tool_format: ToolFormat, markers: Mapping[str, Marker]) -> CallSyntax:
    """Return the syntax of a format with a model's markers."""
    if tool_format is ToolFormat.HERMES:
        return CallSyntax(_OBJECT_CALL)
    if tool_format is ToolFormat.LLAMA3:
        return CallSyntax(_OBJECT_CALL, is_bare=True)
    if "arguments" not in markers:
        return CallSyntax((Sign.BLANKS, _text("["), *_OBJECT_CALL), is_listed=True)
    parts: list[Part] = [Sign.BLANKS, Sign.NAME]
    if "call_id" in markers:
        parts += [_marker("call_id", markers), Sign.CALL_ID]
    return CallSyntax((*parts, _marker("arguments", markers), Sign.BLANKS, Sign.OBJECT), is_object=False)


def _marker(role: str, markers: Mapping[str, Marker]) -> Part:
    return Marked(role) if markers[role].token_id is not None else _text(markers[role].text)
