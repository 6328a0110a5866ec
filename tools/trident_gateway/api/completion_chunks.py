"""The answers of `/v1/completions`, as chunks and as a whole.

Owns their JSON. Both are made of the same parts. Never waits for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from trident_gateway.api.chat_stream import DONE
from trident_gateway.api.choices import Delta
from trident_gateway.api.rows import TokenScores
from trident_gateway.api.scores import CompletionLogprobs, CompletionScores, join_logprobs
from trident_gateway.api.usage import Usage
from trident_gateway.tool_calls.answer_parser import ContentDelta

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class AnswerHead:
    """The fields that all parts of an answer have in common.

    Args:
        answer_id: drawn for it.
        created: seconds since 1970.
        model: the model's name.
    """

    answer_id: str
    created: int
    model: str

    def body(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"id": self.answer_id, "object": "text_completion", "created": self.created, "model": self.model}


@dataclass(slots=True)
class CompletionPart:
    """The part that one response has added to one answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class CompletionParts:
    """Makes parts of deltas.

    Args:
        num_top: likeliest tokens that are shown; None for no log probabilities.
        num_choices: answers to each prompt.
    """

    def __init__(self, num_top: int | None, num_choices: int) -> None:
        self._num_top = num_top
        self._num_choices = num_choices
        self._scores: dict[int, CompletionScores] = {}

    def read(self, deltas: Sequence[Delta], prompt_scores: dict[int, list[TokenScores]]) -> list[CompletionPart]:
        """Return the parts of deltas, in their order.

        Args:
            deltas: what has come.
            prompt_scores: of the prompts that are echoed, by their position.
        """
        return [
            CompletionPart(
                delta.index,
                "".join(event.text for event in delta.events if isinstance(event, ContentDelta)),
                None if self._num_top is None else self._logprobs(delta, prompt_scores),
                delta.finish_reason,
            )
            for delta in deltas
        ]

    def _logprobs(self, delta: Delta, prompt_scores: dict[int, list[TokenScores]]) -> CompletionLogprobs:
        parts = []
        scores = self._scores.get(delta.index)
        if scores is None:
            scores = self._scores[delta.index] = CompletionScores(self._num_top or 0)
            of_prompt = prompt_scores.get(delta.index // self._num_choices)
            if of_prompt is not None:
                parts.append(scores.put(of_prompt, is_prompt=True))
        parts.append(scores.put(delta.scores))
        return join_logprobs(parts)


class CompletionStream:
    """The events of one stream.

    Args:
        head: of all chunks.
        include_usage: the stream ends with the usage, and every other chunk has a null in its place.
    """

    def __init__(self, head: AnswerHead, *, include_usage: bool) -> None:
        self._head = b"data: " + _encode(head.body())[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._end = b',"logprobs":null,"finish_reason":null}' + self._tail

    def render(self, parts: Sequence[CompletionPart]) -> bytes:
        """Return the events for parts; nothing for parts that a client does not see."""
        chunks: list[bytes] = []
        for part in parts:
            text = self._head + b'{"index":%d,"text":' % part.index + _encode(part.text)
            if part.logprobs is None and not part.finish_reason:
                if part.text:
                    chunks.append(text + self._end)
            else:
                reason = _encode(part.finish_reason or None)
                logprobs = b',"logprobs":' + _encode(part.logprobs)
                chunks.append(text + logprobs + b',"finish_reason":' + reason + b"}" + self._tail)
        return b"".join(chunks)

    def end(self, usage: Usage | None) -> bytes:
        """Return the last events.

        Args:
            usage: None if it was not asked for.
        """
        if usage is None:
            return DONE
        return self._head + b'],"usage":' + _encode(usage.body()) + b"}\n\n" + DONE


def render_completion(head: AnswerHead, parts: Sequence[CompletionPart], num_answers: int, usage: Usage) -> bytes:
    """Return the JSON of all answers.

    Args:
        head: of the answer.
        parts: of all answers, each one's in order.
        num_answers: to all prompts.
        usage: of all of them.
    """
    by_index: list[list[CompletionPart]] = [[] for _ in range(num_answers)]
    for part in parts:
        by_index[part.index].append(part)
    choices = [
        {
            "index": index,
            "text": "".join(part.text for part in own),
            "logprobs": None
            if own[0].logprobs is None
            else join_logprobs([part.logprobs for part in own if part.logprobs]),
            "finish_reason": own[-1].finish_reason,
        }
        for index, own in enumerate(by_index)
    ]
    return _encode({**head.body(), "choices": choices, "usage": usage.body()})
