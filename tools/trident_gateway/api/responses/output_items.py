"""The items of an output while they come, and the events that tell of them.

Owns the state of each item. A stream shows the events, a plain answer the items, and both are made here. Never knows
what else a response has.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from trident_gateway.api.choices import Delta
from trident_gateway.api.rows import TokenScores
from trident_gateway.api.scores import chat_logprobs
from trident_gateway.tool_calls.answer_parser import (
    AnswerEvent,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallStart,
)

Json = dict[str, Any]


class OutputItems:
    """The items of one answer."""

    def __init__(self) -> None:
        self.items: list[Json] = []
        self._open: _OpenItem | None = None
        self._scores: list[TokenScores] = []

    def read(self, delta: Delta) -> list[Json]:
        """Take what has come; return the events of it, without their numbers."""
        events: list[Json] = []
        self._scores += delta.scores
        for event in delta.events:
            events += self._read(event)
        if self._scores and isinstance(self._open, _TextItem):
            # The token has no character of its own yet, being a part of one.
            events += self._open.add("", self._take_scores())
        if delta.finish_reason:
            status = "incomplete" if delta.finish_reason == "length" else "completed"
            events += self._end(status)
            if not self.items:
                events += self._begin(_TextItem(0))
                events += self._end(status)
        return events

    def _read(self, event: AnswerEvent) -> list[Json]:
        begun: list[Json] = []
        if isinstance(event, ToolCallStart):
            return self._begin(_CallItem(len(self.items), event.id, event.name))
        if isinstance(event, ToolCallDelta):
            assert isinstance(self._open, _CallItem), "a call's arguments follow its name"
            return self._open.add(event.arguments)
        if isinstance(event, ReasoningDelta):
            if not isinstance(self._open, _ReasoningItem):
                begun = self._begin(_ReasoningItem(len(self.items)))
            assert isinstance(self._open, _ReasoningItem)
            return begun + self._open.add(event.text)
        if not isinstance(self._open, _TextItem):
            begun = self._begin(_TextItem(len(self.items)))
        assert isinstance(self._open, _TextItem)
        return begun + self._open.add(event.text, self._take_scores())

    def _take_scores(self) -> list[TokenScores]:
        scores, self._scores = self._scores, []
        return scores

    def _begin(self, item: _OpenItem) -> list[Json]:
        events = self._end("completed")
        item.index = len(self.items)
        self.items.append(item.body("in_progress"))
        self._open = item
        return events + item.begin()

    def _end(self, status: str) -> list[Json]:
        item = self._open
        if item is None:
            return []
        self._open = None
        self.items[item.index] = item.body(status)
        return item.end(status)


class _OpenItem:
    """An item that is not complete."""

    prefix = ""

    def __init__(self, index: int) -> None:
        self.index = index
        self.item_id = f"{self.prefix}_{secrets.token_hex(16)}"
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """All of its text so far."""
        return "".join(self._parts)

    def body(self, status: str) -> Json:
        """Return the item."""
        raise NotImplementedError

    def begin(self) -> list[Json]:
        """Return the events of its beginning."""
        return [{"type": "response.output_item.added", "output_index": self.index, "item": self.body("in_progress")}]

    def end(self, status: str) -> list[Json]:
        """Return the events of its end."""
        return [{"type": "response.output_item.done", "output_index": self.index, "item": self.body(status)}]

    def _event(self, kind: str, **values: Any) -> Json:
        return {"type": f"response.{kind}", "item_id": self.item_id, "output_index": self.index, **values}


class _TextItem(_OpenItem):
    """A message."""

    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._scores: list[TokenScores] = []

    def body(self, status: str) -> Json:
        content = [] if status == "in_progress" else [self._part()]
        return {"type": "message", "id": self.item_id, "role": "assistant", "status": status, "content": content}

    def begin(self) -> list[Json]:
        return [*super().begin(), self._event("content_part.added", content_index=0, part=self._part())]

    def add(self, text: str, scores: Sequence[TokenScores]) -> list[Json]:
        self._parts.append(text)
        self._scores += scores
        return [self._event("output_text.delta", content_index=0, delta=text, logprobs=_short(scores))]

    def end(self, status: str) -> list[Json]:
        text, logprobs = self.text, _short(self._scores)
        return [
            self._event("output_text.done", content_index=0, text=text, logprobs=logprobs),
            self._event("content_part.done", content_index=0, part=self._part()),
            *super().end(status),
        ]

    def _part(self) -> Json:
        logprobs = chat_logprobs(self._scores)
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}


class _ReasoningItem(_OpenItem):
    """Reasoning."""

    prefix = "rs"

    def body(self, status: str) -> Json:
        content = [] if status == "in_progress" else [self._part()]
        return {"type": "reasoning", "id": self.item_id, "summary": [], "content": content, "status": status}

    def begin(self) -> list[Json]:
        return [*super().begin(), self._event("content_part.added", content_index=0, part=self._part())]

    def add(self, text: str) -> list[Json]:
        self._parts.append(text)
        return [self._event("reasoning_text.delta", content_index=0, delta=text)]

    def end(self, status: str) -> list[Json]:
        return [
            self._event("reasoning_text.done", content_index=0, text=self.text),
            self._event("content_part.done", content_index=0, part=self._part()),
            *super().end(status),
        ]

    def _part(self) -> Json:
        return {"type": "reasoning_text", "text": self.text}


class _CallItem(_OpenItem):
    """A call of a tool."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._name = name

    def body(self, status: str) -> Json:
        return {
            "type": "function_call", "id": self.item_id, "call_id": self._call_id, "name": self._name,
            "arguments": self.text, "status": status,
        }  # fmt: skip

    def add(self, text: str) -> list[Json]:
        self._parts.append(text)
        return [self._event("function_call_arguments.delta", delta=text)]

    def end(self, status: str) -> list[Json]:
        return [self._event("function_call_arguments.done", arguments=self.text), *super().end(status)]


def _short(scores: Sequence[TokenScores]) -> list[Json]:
    """Return log probabilities as events have them: without bytes."""
    return [
        {
            "token": entry.token,
            "logprob": entry.logprob,
            "top_logprobs": [{"token": top.token, "logprob": top.logprob} for top in entry.top_logprobs],
        }
        for entry in chat_logprobs(scores)
    ]
