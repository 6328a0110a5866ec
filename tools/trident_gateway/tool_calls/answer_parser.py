"""The reading of an answer as it comes: content, reasoning, and calls of tools.

Owns the state of one answer. Any cutting of the text gives the same events, but for where deltas are cut. Never drops
text but white space beside markers: a marker that begins no call is content.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from trident_ensemble.contract.model_card import ModelCard, ToolFormat
from trident_gateway.tool_calls.guides import ToolPlan


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


class AnswerParser:
    """Reads one answer.

    Args:
        card: the facts about the model.
        plan: the plan by which the answer was asked for.
        draw_id: returns the id of a new call; None draws random ones in the model's form.
    """

    def __init__(self, card: ModelCard, plan: ToolPlan, draw_id: Callable[[], str] | None = None) -> None:
        self._draw_id = draw_id or (lambda: new_call_id(card.tool_format))
        raise NotImplementedError

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        raise NotImplementedError

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known; for the count of its tokens."""
        raise NotImplementedError

    def feed(self, text: str, markers: Sequence[tuple[int, int]] = ()) -> list[AnswerEvent]:
        """Take the next part of the answer; return what is certain by now.

        Args:
            text: the part, without the texts of its markers.
            markers: for each marker in it, in order, the number of its characters before it, and its token id.
        """
        raise NotImplementedError

    def finish(self) -> list[AnswerEvent]:
        """Return what is left when the answer has ended; nothing may be fed after."""
        raise NotImplementedError


def new_call_id(tool_format: ToolFormat | None) -> str:
    """Return a random id of a call: nine letters and digits for Mistral, whose template takes no other."""
    alphabet = string.ascii_letters + string.digits
    if tool_format is ToolFormat.MISTRAL:
        return "".join(secrets.choice(alphabet) for _ in range(9))
    return "call_" + "".join(secrets.choice(alphabet) for _ in range(24))
