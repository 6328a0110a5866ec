"""The tokens of one request.

Owns their count: what clients read as usage, what limits settle, and what the log says are these numbers. Never
estimates anything but the share of reasoning that is spelled by ordinary tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trident_ensemble.contract.model_card import Reasoning
from trident_gateway.api.rows import Row, rows_of
from trident_gateway.upstream.events import GenerateEvent, MalformedEventError


@dataclass
class Usage:
    """The tokens of a request, counted.

    Args:
        num_input: of the prompts.
        num_cached: of these, found in the prefix cache.
        num_output: of all answers.
        num_reasoning: of these, reasoning; None for a model that does not reason.
    """

    num_input: int = 0
    num_cached: int = 0
    num_output: int = 0
    num_reasoning: int | None = None

    def body(self) -> dict[str, Any]:
        """Return the usage as chat and completions show it."""
        body: dict[str, Any] = {
            "prompt_tokens": self.num_input,
            "completion_tokens": self.num_output,
            "total_tokens": self.num_input + self.num_output,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }
        if self.num_reasoning is not None:
            body["completion_tokens_details"] = {"reasoning_tokens": self.num_reasoning}
        return body


class TokenMeter:
    """Counts the tokens of one call while its responses come.

    Args:
        echo: the first response of a sequence begins with the prompt.
    """

    def __init__(self, *, echo: bool = False) -> None:
        self.num_input: int | None = None
        self.num_cached = 0
        self._echo = echo
        self._outputs: dict[int, int] = {}

    @property
    def num_output(self) -> int:
        """Tokens generated so far in all sequences."""
        return sum(self._outputs.values())

    def take(self, events: Sequence[GenerateEvent]) -> None:
        """Take responses that no client gets to see; one that makes no sense counts nothing."""
        for event in events:
            with suppress(MalformedEventError, ValueError, IndexError):
                self.read(event)
                for row in rows_of(event):
                    self.count(row)

    def read(self, event: GenerateEvent) -> None:
        """Take what a response says of the prompt."""
        if event.num_input_tokens is not None:
            self.num_input = event.num_input_tokens
        if event.num_cached_tokens is not None:
            self.num_cached = event.num_cached_tokens

    def count(self, row: Row) -> int:
        """Take the tokens of a sequence's response; return how many of these are new output."""
        so_far = self._outputs.get(row.index)
        num_new = len(row.token_ids)
        if so_far is None:
            so_far = 0
            if self._echo:
                num_new = max(0, num_new - (self.num_input or 0))
        if row.num_output_tokens is not None:
            num_new = max(0, row.num_output_tokens - so_far)
        self._outputs[row.index] = so_far + num_new
        return num_new


class ReasoningMeter:
    """Counts the tokens of an answer's reasoning, its markers included.

    Args:
        reasoning: how the model marks it.
        has_begun: the prompt has begun it.
    """

    def __init__(self, reasoning: Reasoning, *, has_begun: bool) -> None:
        self._start, self._end = reasoning.start.token_id, reasoning.end.token_id
        self._inside = has_begun
        self._num_marked = 0
        self._num_tokens = 0
        self._num_characters = [0, 0]

    def count(self, token_ids: list[int]) -> None:
        """Take the next tokens of the answer."""
        self._num_tokens += len(token_ids)
        if self._end is None:
            return
        for token_id in token_ids:
            if token_id == self._start:
                self._inside = True
            self._num_marked += self._inside
            if token_id == self._end:
                self._inside = False

    def read(self, text: str, *, is_reasoning: bool) -> None:
        """Take the next text of the answer."""
        self._num_characters[is_reasoning] += len(text)

    @property
    def num_tokens(self) -> int:
        """Tokens of reasoning so far.

        Where ordinary tokens spell the markers, it is the share of the text.
        """
        if self._end is not None:
            return self._num_marked
        other, reasoning = self._num_characters
        return round(self._num_tokens * reasoning / (other + reasoning)) if reasoning else 0
