"""The chunks of a chat's stream.

Owns their JSON. What is the same in all chunks of a stream is written once, and a chunk is that, the text, and the
rest. Never waits for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trident_gateway.api.choices import Delta
from trident_gateway.api.scores import chat_logprobs
from trident_gateway.api.usage import Usage
from trident_gateway.tool_calls.answer_parser import (
    AnswerEvent,
    ContentDelta,
    ReasoningDelta,
    ToolCallStart,
)

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class ChatStream:
    """The events of one stream.

    Args:
        answer_id: of the answer, the same in all chunks.
        created: seconds since 1970.
        model: the model's name.
        include_usage: the stream ends with the usage, and every other chunk has a null in its place.
    """

    def __init__(self, answer_id: str, created: int, model: str, *, include_usage: bool) -> None:
        head = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._end = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._beginnings: dict[int, bytes] = {}
        self._content: dict[int, bytes] = {}

    def render(self, deltas: Sequence[Delta]) -> bytes:
        """Return the events for deltas, in their order; nothing for deltas that a client does not see."""
        chunks: list[bytes] = []
        for delta in deltas:
            index = delta.index
            if index not in self._content:
                self._begin(index)
                chunks.append(self._chunk(index, b'{"role":"assistant","content":""}'))
            if not delta.scores:
                content, end = self._content[index], self._end
                for event in delta.events:
                    if type(event) is ContentDelta:
                        chunks.append(content + _encode(event.text) + b"}" + end)
                    else:
                        chunks.append(self._chunk(index, _delta(event)))
            else:
                self._put_scored(chunks, delta)
            if delta.finish_reason:
                reason = b',"logprobs":null,"finish_reason":' + _encode(delta.finish_reason) + b"}"
                chunks.append(self._beginnings[index] + b"{}" + reason + self._tail)
        return b"".join(chunks)

    def end(self, usage: Usage | None) -> bytes:
        """Return the last events.

        Args:
            usage: None if it was not asked for.
        """
        if usage is None:
            return DONE
        return self._head + b'],"usage":' + _encode(usage.body()) + b"}\n\n" + DONE

    def _begin(self, index: int) -> None:
        self._beginnings[index] = self._head + b'{"index":%d,"delta":' % index
        self._content[index] = self._beginnings[index] + b'{"content":'

    def _chunk(self, index: int, delta: bytes) -> bytes:
        return self._beginnings[index] + delta + self._end

    def _put_scored(self, chunks: list[bytes], delta: Delta) -> None:
        """Put the log probabilities of a response into its first chunk."""
        first, *others = [_delta(event) for event in delta.events] or [b'{"content":""}']
        logprobs = _encode({"content": chat_logprobs(delta.scores), "refusal": None})
        scored = b',"logprobs":' + logprobs + b',"finish_reason":null}' + self._tail
        chunks.append(self._beginnings[delta.index] + first + scored)
        chunks += [self._chunk(delta.index, other) for other in others]


def _delta(event: AnswerEvent) -> bytes:
    delta: dict[str, Any]
    if isinstance(event, ContentDelta):
        delta = {"content": event.text}
    elif isinstance(event, ReasoningDelta):
        delta = {"reasoning_content": event.text}
    elif isinstance(event, ToolCallStart):
        function = {"name": event.name, "arguments": ""}
        delta = {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}
    else:
        delta = {"tool_calls": [{"index": event.index, "function": {"arguments": event.arguments}}]}
    return _encode(delta)
