"""The values of command-line options.

Owns their parsing for argparse, and the messages about bad values. Never declares an option.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class FileOption(Generic[_Value]):
    """A file named on the command line, and what was read from it."""

    path: str
    content: _Value

    def __str__(self) -> str:
        return self.path


def read_by(read: Callable[[str], _Value]) -> Callable[[str], FileOption[_Value]]:
    """Return a parser for the path of a file, which `read` reads at once."""
    return lambda path: FileOption(path, read(path))


def list_of(parse: Callable[[str], _Value]) -> Callable[[str], list[_Value]]:
    """Return a parser for values with commas between them."""
    return lambda text: [parse(word) for word in text.split(",")]


def whole_number(least: int) -> Callable[[str], int]:
    """Return a parser for a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Read a number above 0."""
    number = _float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return number


def number_from_zero(text: str) -> float:
    """Read a number of at least 0."""
    number = _float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return number


def field(text: str) -> tuple[str, Any]:
    """Read `NAME=VALUE`; a value that is not valid JSON is a string."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, for example temperature=0.7")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
