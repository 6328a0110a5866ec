"""The reading of an answer as it comes: content, reasoning, and calls of tools.

Owns the state of one answer. Any cutting of the text gives the same events, but for where deltas are cut. Never drops
text but white space beside markers: a marker that begins no call is content.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence

from trident_ensemble.contract.model_card import Marker, ModelCard, ToolFormat
from trident_gateway.tool_calls.answer_events import (
    AnswerEvent,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallStart,
)
from trident_gateway.tool_calls.call_syntax import Beginning, Braces, CallSyntax, Progress, Rest, syntax_of
from trident_gateway.tool_calls.guides import ToolPlan

__all__ = [
    "AnswerEvent", "AnswerParser", "ContentDelta", "ReasoningDelta", "ToolCallDelta", "ToolCallStart", "new_call_id",
]  # fmt: skip

_BLANKS = " \n\r\t"
_THINK, _END_THINK = "reasoning start", "reasoning end"


class AnswerParser:
    """Reads one answer.

    Args:
        card: the facts about the model.
        plan: the plan by which the answer was asked for.
        draw_id: returns the id of a new call; None draws random ones in the model's form.
    """

    def __init__(self, card: ModelCard, plan: ToolPlan, draw_id: Callable[[], str] | None = None) -> None:
        self._draw_id = draw_id or (lambda: new_call_id(card.tool_format))
        self._names = plan.names
        self._is_guided = plan.guide is not None
        markers: dict[str, Marker] = {}
        self._syntax: CallSyntax | None = None
        if plan.names and card.tool_format is not None:
            markers.update(card.tool_markers)
            self._syntax = syntax_of(card.tool_format, card.tool_markers)
        if plan.reasons and card.reasoning is not None:
            markers.update({_THINK: card.reasoning.start, _END_THINK: card.reasoning.end})
        self._roles = {marker.token_id: role for role, marker in markers.items() if marker.token_id is not None}
        self._spelled = {role: marker.text for role, marker in markers.items() if marker.token_id is None}
        self._texts = {role: marker.text for role, marker in markers.items()}
        self._events: list[AnswerEvent] = []
        self._num_calls = 0
        self._is_open = False
        #: Text of the content or reasoning that white space or the beginning of a marker may follow.
        self._held = ""
        #: White space that follows belongs to the marker before it.
        self._skips_blanks = False
        #: What has come of a call that is not certain yet: the marker with what is before it, and the text after it.
        self._opening, self._consumed = "", ""
        self._beginning = Beginning(())
        self._braces = Braces()
        #: What stands between the arguments of a call and the end of its object.
        self._rest = Rest()
        self._state = self._in_reasoning if plan.in_reasoning else self._at_the_beginning
        self._skips_blanks = plan.in_reasoning

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._num_calls

    @property
    def is_open(self) -> bool:
        """Whether the last call has not come to the end of its arguments, so that nobody may make it."""
        return self._is_open

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known; for the count of its tokens."""
        return self._state == self._in_reasoning

    def feed(self, text: str, markers: Sequence[tuple[int, int]] = ()) -> list[AnswerEvent]:
        """Take the next part of the answer; return what is certain by now.

        Args:
            text: the part, without the texts of its markers.
            markers: for each marker in it, in order, the number of its characters before it, and its token id.
        """
        place = 0
        for offset, token_id in markers:
            self._take(text[place:offset])
            place = offset
            if role := self._roles.get(token_id):
                self._mark(role)
        self._take(text[place:])
        return self._take_events()

    def finish(self) -> list[AnswerEvent]:
        """Return what is left when the answer has ended; nothing may be fed after."""
        while self._state == self._in_beginning:
            if self._is_guided and (self._opening or self._beginning.is_past_name_key):
                # A call that was cut before its arguments.
                self._is_open = True
                return self._take_events()
            self._take(self._give_up())
        if self._state == self._in_reasoning:
            self._say(self._held, ReasoningDelta)
        elif self._state == self._in_rest:
            self._say(self._rest.end(), ContentDelta)
        elif self._state != self._after_call and not (self._skips_blanks and not self._held.strip(_BLANKS)):
            self._say(self._held, ContentDelta)
        self._held = ""
        return self._take_events()

    def _take(self, text: str) -> None:
        while text:
            text = self._state(text)

    def _take_events(self) -> list[AnswerEvent]:
        events, self._events = self._events, []
        return events

    def _say(self, text: str, kind: type[ContentDelta] | type[ReasoningDelta]) -> None:
        if not text:
            return
        if self._events and isinstance(last := self._events[-1], kind):
            self._events[-1] = kind(last.text + text)
        else:
            self._events.append(kind(text))

    # States: each takes text and returns what it leaves for the next one.

    def _at_the_beginning(self, text: str) -> str:
        """Nothing but white space has come."""
        text, self._held = self._held + text, ""
        said = text.lstrip(_BLANKS)
        start = self._spelled.get(_THINK)
        if start is not None and said.startswith(start):
            self._begin_reasoning()
            return said.removeprefix(start)
        if not said or (start is not None and start.startswith(said)):
            self._held = text
            return ""
        self._begin_answer()
        return text

    def _in_reasoning(self, text: str) -> str:
        text = self._held + text
        if self._skips_blanks:
            text = text.lstrip(_BLANKS)
        end = self._spelled.get(_END_THINK)
        place = -1 if end is None else text.find(end)
        if end is not None and place >= 0:
            self._say(text[:place].rstrip(_BLANKS), ReasoningDelta)
            self._end_reasoning()
            return text[place + len(end) :]
        certain = _certain(text, [end] if end else [])
        self._say(text[:certain], ReasoningDelta)
        self._held = text[certain:]
        self._skips_blanks = self._skips_blanks and not certain
        return ""

    def _in_content(self, text: str) -> str:
        text, self._held = self._held + text, ""
        if self._skips_blanks:
            text = text.lstrip(_BLANKS)
        start = self._spelled.get("start") if self._syntax is not None else None
        place = -1 if start is None else text.find(start)
        if start is not None and place >= 0:
            before = text[:place].rstrip(_BLANKS)
            self._say(before, ContentDelta)
            self._begin_call(text[len(before) : place] + start)
            return text[place + len(start) :]
        certain = len(text) if self._syntax is None else _certain(text, [start] if start else [])
        self._say(text[:certain], ContentDelta)
        self._held = text[certain:]
        self._skips_blanks = self._skips_blanks and not certain
        return ""

    def _in_beginning(self, text: str) -> str:
        """What stands before a call's arguments."""
        length, progress = self._beginning.feed(text)
        self._consumed += text[:length]
        if progress is Progress.MORE:
            return ""
        if progress is Progress.FAILED or self._beginning.name not in self._names:
            return self._give_up() + text[length:]
        self._events.append(ToolCallStart(self._num_calls, self._draw_id(), self._beginning.name))
        self._num_calls += 1
        self._is_open = True
        self._opening = self._consumed = ""
        self._braces = Braces()
        self._state = self._in_arguments
        return text[length:]

    def _in_arguments(self, text: str) -> str:
        end = self._braces.end(text)
        arguments = text if end < 0 else text[:end]
        self._events.append(ToolCallDelta(self._num_calls - 1, arguments))
        if end < 0:
            return ""
        assert self._syntax is not None
        self._is_open = False
        self._braces = Braces(depth=1)
        self._rest = Rest()
        if self._syntax.is_object:
            self._state = self._in_rest
        else:
            self._after_marker()
        return text[end:]

    def _in_rest(self, text: str) -> str:
        """What the object of a call has after the arguments: at most an id, where it was held to a grammar."""
        end = self._braces.end(text)
        self._say(self._rest.feed(text if end < 0 else text[: end - 1]), ContentDelta)
        if end < 0:
            return ""
        assert self._syntax is not None
        self._say(self._rest.end(), ContentDelta)
        self._state = self._in_list if self._syntax.is_listed else self._after_call
        self._held = ""
        return text[end:]

    def _in_list(self, text: str) -> str:
        """Between the calls of a list."""
        text = text.lstrip(_BLANKS)
        if text.startswith(","):
            assert self._syntax is not None
            self._begin_call(",", is_next=True)
            return text[1:]
        if text:
            self._after_marker()
        return text.removeprefix("]")

    def _after_call(self, text: str) -> str:
        """Where the end of a call stands, if its format has one."""
        text, self._held = self._held + text, ""
        said = text.lstrip(_BLANKS)
        end = self._spelled.get("end")
        if end is not None and said.startswith(end):
            self._after_marker()
            return said.removeprefix(end)
        if not said or (end is not None and end.startswith(said)):
            self._held = said
            return ""
        self._after_marker()
        return said

    # Changes of state.

    def _begin_reasoning(self) -> None:
        self._held = ""
        self._skips_blanks = True
        self._state = self._in_reasoning

    def _end_reasoning(self) -> None:
        self._held = ""
        self._skips_blanks = True
        self._begin_answer()

    def _begin_answer(self) -> None:
        """Go where the answer itself begins, which may be a call without a marker."""
        self._state = self._in_content
        if self._syntax is not None and self._syntax.is_bare:
            self._begin_call("")

    def _begin_call(self, opening: str, *, is_next: bool = False) -> None:
        assert self._syntax is not None
        self._opening, self._consumed, self._held = opening, "", ""
        self._beginning = Beginning(self._syntax.next if is_next else self._syntax.first)
        self._state = self._in_beginning

    def _give_up(self) -> str:
        """Return to the content from what turned out not to be a call; return its text that must be read again."""
        self._state = self._in_content
        consumed = self._consumed
        if self._opening:
            self._say(self._opening, ContentDelta)
            self._skips_blanks = False
        self._opening = self._consumed = ""
        return consumed

    def _after_marker(self) -> None:
        self._held = ""
        self._skips_blanks = True
        self._state = self._in_content

    def _mark(self, role: str) -> None:
        """Take a marker that is one token."""
        while self._state == self._in_beginning:
            if self._beginning.mark(role):
                self._consumed += self._texts[role]
                return
            self._take(self._give_up())
        if self._state == self._in_rest:
            self._say(self._rest.end(), ContentDelta)
        if self._state == self._in_arguments and self._braces.in_string:
            self._take(self._texts[role])
        elif self._state == self._in_reasoning:
            if role == _END_THINK:
                self._end_reasoning()
            elif role != _THINK or not self._skips_blanks:
                # Some models begin once more what the prompt has begun.
                self._take(self._texts[role])
        elif role == _THINK and self._state == self._at_the_beginning:
            self._begin_reasoning()
        elif role == "start":
            held = self._held if self._state in {self._in_content, self._at_the_beginning} else ""
            self._begin_call(held + self._texts[role])
        elif role == "end" and self._state in {self._after_call, self._in_rest, self._in_arguments}:
            self._after_marker()
        else:
            if self._state not in {self._in_content, self._at_the_beginning}:
                self._after_marker()
            self._take(self._texts[role])


def _certain(text: str, markers: Sequence[str]) -> int:
    """Return how much of a text is certainly before any marker, and before the white space that a marker takes."""
    held = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), held, -1):
            if text.endswith(marker[:length]):
                held = length
                break
    return len(text[: len(text) - held].rstrip(_BLANKS))


def new_call_id(tool_format: ToolFormat | None) -> str:
    """Return a random id of a call: nine letters and digits for Mistral, whose template takes no other."""
    alphabet = string.ascii_letters + string.digits
    if tool_format is ToolFormat.MISTRAL:
        return "".join(secrets.choice(alphabet) for _ in range(9))
    return "call_" + "".join(secrets.choice(alphabet) for _ in range(24))
