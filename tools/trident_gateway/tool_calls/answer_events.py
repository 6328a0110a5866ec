"""What an answer consists of, part by part.

Owns the kinds of parts. Never joins or cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class ContentDelta:
    """The next part of the content; never empty."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """The next part of the reasoning; never empty."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """The beginning of a call.

    Args:
        index: 0 for the answer's first call.
        id: drawn for it.
        name: the tool's.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """The next part of a call's arguments, which are JSON; never empty."""

    index: int
    arguments: str


AnswerEvent: TypeAlias = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallDelta
