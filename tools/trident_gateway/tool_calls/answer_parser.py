"""The reading of an answer as it comes: content, reasoning, and calls of tools.

Owns the state of one answer. Any cutting of the text gives the same events, but for where deltas are cut. Never drops
text but white space beside markers: a marker that begins no call is content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trident_ensemble.contract.model_card import Marker, ModelCard
from trident_gateway.tool_calls.answer_events import (
    AnswerEvent,
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallStart,
)
from trident_gateway.tool_calls.call_reader import CallReader, Stage, new_call_id
from trident_gateway.tool_calls.call_syntax import syntax_of
from trident_gateway.tool_calls.event_queue import EventQueue
from trident_gateway.tool_calls.guides import ToolPlan
from trident_gateway.tool_calls.lookahead import certain_length

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
        self._is_guided = plan.guide is not None
        markers: dict[str, Marker] = {}
        tool_format = card.tool_format if plan.names else None
        if tool_format is not None:
            markers.update(card.tool_markers)
        if plan.reasons and card.reasoning is not None:
            markers.update({_THINK: card.reasoning.start, _END_THINK: card.reasoning.end})
        self._roles = {marker.token_id: role for role, marker in markers.items() if marker.token_id is not None}
        self._spelled = {role: marker.text for role, marker in markers.items() if marker.token_id is None}
        self._texts = {role: marker.text for role, marker in markers.items()}
        self._events = EventQueue()
        self._call: CallReader | None = None
        self._may_begin_with_call = False
        if tool_format is not None:
            syntax = syntax_of(tool_format, card.tool_markers)
            draw = draw_id or partial(new_call_id, tool_format)
            self._call = CallReader(syntax, plan.names, self._spelled.get("end"), self._events, draw)
            self._may_begin_with_call = syntax.is_bare
        #: Text of the content or reasoning that white space or the beginning of a marker may follow.
        self._held = ""
        self._state = self._in_reasoning if plan.in_reasoning else self._at_the_beginning
        #: White space that follows belongs to the marker before it.
        self._skips_blanks = plan.in_reasoning

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return 0 if self._call is None else self._call.num_calls

    @property
    def is_open(self) -> bool:
        """Whether the last call has not come to the end of its arguments, so that nobody may make it."""
        return self._call is not None and self._call.is_open

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
        return self._events.take()

    def finish(self) -> list[AnswerEvent]:
        """Return what is left when the answer has ended; nothing may be fed after."""
        while (call := self._begun_call()) is not None and not (self._is_guided and call.is_certain):
            self._take(self._give_up(call))
        if self._state == self._in_call:
            # If it was cut before its arguments, it is left out.
            self._end_call()
        elif self._state == self._in_reasoning:
            self._events.say(self._held, ReasoningDelta)
        elif not (self._skips_blanks and not self._held.strip(_BLANKS)):
            self._events.say(self._held)
        self._held = ""
        return self._events.take()

    def _take(self, text: str) -> None:
        while text:
            text = self._state(text)

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
            self._events.say(text[:place].rstrip(_BLANKS), ReasoningDelta)
            self._end_reasoning()
            return text[place + len(end) :]
        certain = certain_length(text, end)
        self._events.say(text[:certain], ReasoningDelta)
        self._held = text[certain:]
        self._skips_blanks = self._skips_blanks and not certain
        return ""

    def _in_content(self, text: str) -> str:
        text, self._held = self._held + text, ""
        if self._skips_blanks:
            text = text.lstrip(_BLANKS)
        start = self._spelled.get("start") if self._call is not None else None
        place = -1 if start is None else text.find(start)
        if start is not None and place >= 0:
            before = text[:place].rstrip(_BLANKS)
            self._events.say(before)
            self._begin_call(text[len(before) : place] + start)
            return text[place + len(start) :]
        certain = len(text) if self._call is None else certain_length(text, start)
        self._events.say(text[:certain])
        self._held = text[certain:]
        self._skips_blanks = self._skips_blanks and not certain
        return ""

    def _in_call(self, text: str) -> str:
        assert self._call is not None
        left = self._call.feed(text)
        if self._call.stage is Stage.FAILED:
            return self._give_up(self._call) + left
        if self._call.stage is Stage.OVER:
            self._after_marker()
        return left

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
        if self._may_begin_with_call:
            self._begin_call("")

    def _begin_call(self, opening: str) -> None:
        assert self._call is not None
        self._call.begin(opening)
        self._held = ""
        self._state = self._in_call

    def _begun_call(self) -> CallReader | None:
        """Return the call of which only the beginning has come, if there is one."""
        begins = self._state == self._in_call and self._call is not None and self._call.stage is Stage.BEGINNING
        return self._call if begins else None

    def _give_up(self, call: CallReader) -> str:
        """Return to the content from what turned out not to be a call; return its text that must be read again."""
        self._state = self._in_content
        opening, consumed = call.give_up()
        if opening:
            self._events.say(opening)
            self._skips_blanks = False
        return consumed

    def _end_call(self) -> None:
        """Return to the content from a call, wherever it is."""
        assert self._call is not None
        self._call.close()
        self._after_marker()

    def _after_marker(self) -> None:
        self._held = ""
        self._skips_blanks = True
        self._state = self._in_content

    def _mark(self, role: str) -> None:
        """Take a marker that is one token."""
        text = self._texts[role]
        while (call := self._begun_call()) is not None:
            if call.mark(role, text):
                return
            self._take(self._give_up(call))
        if self._state == self._in_call and self._call is not None:
            if self._call.is_in_string:
                self._take(text)
                return
            has_end = self._call.stage is not Stage.LIST
            self._end_call()
            if role == "end" and has_end:
                return
        if self._state == self._in_reasoning:
            if role == _END_THINK:
                self._end_reasoning()
            elif role != _THINK or not self._skips_blanks:
                # Some models begin once more what the prompt has begun.
                self._take(text)
        elif role == _THINK and self._state == self._at_the_beginning:
            self._begin_reasoning()
        elif role == "start":
            self._begin_call(self._held + text)
        else:
            self._take(text)
