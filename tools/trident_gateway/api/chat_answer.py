"""A chat's answer as a whole.

Owns its JSON. It is made of the same deltas as a stream. Never waits for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trident_gateway.api.choices import Delta
from trident_gateway.api.rows import TokenScores
from trident_gateway.api.scores import chat_logprobs
from trident_gateway.api.usage import Usage
from trident_gateway.tool_calls.answer_parser import ContentDelta, ReasoningDelta, ToolCallStart


class JoinedAnswer:
    """The deltas of one answer, joined."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self.scores: list[TokenScores] = []
        self.calls: list[tuple[str, str, list[str]]] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []

    @property
    def content(self) -> str:
        """The text."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """The reasoning."""
        return "".join(self._reasoning)

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        self.scores += delta.scores
        self.finish_reason = delta.finish_reason
        for event in delta.events:
            if isinstance(event, ContentDelta):
                self._content.append(event.text)
            elif isinstance(event, ReasoningDelta):
                self._reasoning.append(event.text)
            elif isinstance(event, ToolCallStart):
                self.calls.append((event.id, event.name, []))
            else:
                self.calls[event.index][2].append(event.arguments)


def join(deltas: Sequence[Delta], num_choices: int) -> list[JoinedAnswer]:
    """Return the answers of which these are the deltas, by their index."""
    answers = [JoinedAnswer() for _ in range(num_choices)]
    for delta in deltas:
        answers[delta.index].add(delta)
    return answers


def render_chat(
    answers: Sequence[JoinedAnswer], usage: Usage, *, answer_id: str, created: int, model: str, with_logprobs: bool
) -> bytes:
    """Return the JSON of a chat's answer.

    Args:
        answers: to the one prompt.
        usage: of all of them.
        answer_id: drawn for it.
        created: seconds since 1970.
        model: the model's name.
        with_logprobs: the request has asked for log probabilities.
    """
    return msgspec.json.encode(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [_choice(index, answer, with_logprobs=with_logprobs) for index, answer in enumerate(answers)],
            "usage": usage.body(),
        }
    )


def _choice(index: int, answer: JoinedAnswer, *, with_logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for call_id, name, arguments in answer.calls
        ]
    logprobs = {"content": chat_logprobs(answer.scores), "refusal": None} if with_logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}
