"""Counts the tokens of one sequence, in the form that penalties need.

Owns that form: arrays that change by one token at a time as the sequence grows. Never changes a logit.
"""

from __future__ import annotations

import collections.abc as cabc
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import RowPenalties, TokenIds

Number = TypeVar("Number", np.int64, np.float32)


class TokenCounts:
    """The tokens of one growing sequence.

    Args:
        prompt: its first tokens; they are seen, but not counted.
        repetition: the repetition penalty, as `SamplingParams` has it.
        presence: the presence penalty.
        frequency: the frequency penalty.
    """

    def __init__(
        self, prompt: cabc.Sequence[int], repetition: float = 1.0, presence: float = 0.0, frequency: float = 0.0
    ) -> None:
        self._repetition, self._presence, self._frequency = (
            np.float32(each) for each in (repetition, presence, frequency)
        )
        self._repeats, self._counts_output = repetition != 1, presence != 0 or frequency != 0
        #: Ascending, so that an output's token is found in it by bisection, and the logits are read in order.
        self._prompt_ids: TokenIds = np.unique(np.array(prompt if self._repeats else (), np.int64))
        self._num_prompt_tokens = len(prompt)
        self._output: list[int] = []
        self._seen_ids, self._num_seen = self._prompt_ids, len(self._prompt_ids)
        #: The index of each of the output's tokens among those counted, and how often it came.
        self._indices: dict[int, int] = {}
        self._counts: list[int] = []
        self._counted_ids: TokenIds = np.empty(0, np.int64)
        self._offsets: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._offset_by_count: list[np.float32] = []

    def follow(self, token_ids: cabc.Sequence[int]) -> None:
        """Count the output's new tokens; those counted before cost nothing.

        Args:
            token_ids: all of the sequence's.
        """
        new = token_ids[self._num_prompt_tokens + len(self._output) :]
        for token_id in new:
            index = self._indices.get(token_id)
            if index is None:
                index = self._add(token_id)
            self._counts[index] += 1
            if self._counts_output:
                self._offsets[index] = self._offset(self._counts[index])
        self._output += new

    @property
    def num_output_tokens(self) -> int:
        """How many tokens of output have been counted."""
        return len(self._output)

    def since(self, num_output_tokens: int) -> dict[int, float]:
        """Return what is subtracted from the logits of the tokens that came after the first `num_output_tokens`."""
        tokens = dict.fromkeys(self._output[num_output_tokens:])
        if not self._counts_output:
            return dict.fromkeys(tokens, 0.0)
        return {token_id: float(self._offsets[self._indices[token_id]]) for token_id in tokens}

    def penalties(self, draft_ids: cabc.Sequence[int] = ()) -> RowPenalties:
        """Return the penalties of the next token.

        Args:
            draft_ids: draft tokens before it, which count as further output.

        Returns:
            where there are no draft tokens, views that are valid until the sequence grows.
        """
        num_counted = len(self._counts)
        penalties = RowPenalties(
            self._repetition,
            self._seen_ids[: self._num_seen],
            self._counted_ids[:num_counted],
            self._offsets[:num_counted],
            self,
        )
        return self._after(draft_ids, penalties) if draft_ids else penalties

    def _after(self, draft_ids: cabc.Sequence[int], penalties: RowPenalties) -> RowPenalties:
        """Return the penalties after draft tokens, in arrays of their own."""
        _, seen_ids, counted_ids, offsets, _ = penalties
        if self._repeats:
            new = [token_id for token_id in dict.fromkeys(draft_ids) if not self._is_seen(token_id)]
            seen_ids = np.concatenate([seen_ids, np.array(new, np.int64)])
        if self._counts_output:
            new = [token_id for token_id in dict.fromkeys(draft_ids) if token_id not in self._indices]
            counted_ids = np.concatenate([counted_ids, np.array(new, np.int64)])
            offsets = np.concatenate([offsets, np.zeros(len(new), np.float32)])
            indices = {token_id: len(self._counts) + index for index, token_id in enumerate(new)}
            for token_id in set(draft_ids):
                index = self._indices.get(token_id)
                count = draft_ids.count(token_id) + (0 if index is None else self._counts[index])
                offsets[indices[token_id] if index is None else index] = self._offset(count)
        return RowPenalties(self._repetition, seen_ids, counted_ids, offsets, None)

    def _is_seen(self, token_id: int) -> bool:
        return token_id in self._indices or self._is_in_prompt(token_id)

    def _is_in_prompt(self, token_id: int) -> bool:
        index = int(self._prompt_ids.searchsorted(token_id))
        return index < len(self._prompt_ids) and int(self._prompt_ids[index]) == token_id

    def _add(self, token_id: int) -> int:
        """Note a token that the output has for the first time; return its index among those counted."""
        if self._repeats and not self._is_in_prompt(token_id):
            self._seen_ids = _with_room(self._seen_ids, self._num_seen)
            self._seen_ids[self._num_seen] = token_id
            self._num_seen += 1
        index = self._indices[token_id] = len(self._counts)
        self._counts.append(0)
        if self._counts_output:
            self._counted_ids, self._offsets = _with_room(self._counted_ids, index), _with_room(self._offsets, index)
            self._counted_ids[index] = token_id
        return index

    def _offset(self, count: int) -> np.float32:
        by_count = self._offset_by_count
        while len(by_count) <= count:
            by_count.append(self._presence + self._frequency * np.float32(len(by_count)))
        return by_count[count]


def _with_room(array: npt.NDArray[Number], length: int) -> npt.NDArray[Number]:
    """Return the array, or a longer copy if it is full, so that to append costs the same however long it is."""
    return array if length < len(array) else np.concatenate([array, np.empty(max(16, length // 2), array.dtype)])
