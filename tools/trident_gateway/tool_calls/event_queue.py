"""The parts of an answer that are certain and have not been taken yet.

Owns their order, and joins neighbours that are text of one kind. Never reads an answer.
"""

from __future__ import annotations

from trident_gateway.tool_calls.answer_events import AnswerEvent, ContentDelta, ReasoningDelta


class EventQueue:
    """The events of one answer, the oldest first."""

    def __init__(self) -> None:
        self._events: list[AnswerEvent] = []

    def say(self, text: str, kind: type[ContentDelta] | type[ReasoningDelta] = ContentDelta) -> None:
        """Add text, which may be empty."""
        if not text:
            return
        if self._events and isinstance(last := self._events[-1], kind):
            self._events[-1] = kind(last.text + text)
        else:
            self._events.append(kind(text))

    def add(self, event: AnswerEvent) -> None:
        """Add a part of a call."""
        self._events.append(event)

    def take(self) -> list[AnswerEvent]:
        """Return all events and forget them."""
        events, self._events = self._events, []
        return events
