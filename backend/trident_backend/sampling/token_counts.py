"""Which tokens stand in one sequence, and how often in its output.

Owns the counts, kept up as the sequence grows. Never changes a logit.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int64]


class TokenCounts:
    """Of one sequence, which only grows.

    Args:
        num_prompt_tokens: its first tokens; they are known, but not counted.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_seen = 0
        self._num_known = 0
        self._places: dict[int, int] = {}
        self._ids: TokenIds = np.empty(0, np.int64)
        self._counts: TokenIds = np.empty(0, np.int64)

    def see(self, token_ids: Tokens[int]) -> None:
        """Follow the sequence, whose tokens these are; those seen before cost nothing."""
        prompt = token_ids[self._num_seen : self._num_prompt_tokens]
        if prompt:
            self._learn([token_id for token_id in dict.fromkeys(prompt) if token_id not in self._places])
        for token_id in token_ids[max(self._num_seen, self._num_prompt_tokens) :]:
            if token_id not in self._places:
                self._learn([token_id])
            self._counts[self._places[token_id]] += 1
        self._num_seen = len(token_ids)

    def after(self, draft_ids: Tokens[int] = ()) -> tuple[TokenIds, TokenIds]:
        """The different tokens of prompt and output, and how often the output has each.

        Args:
            draft_ids: guessed tokens, taken for further output.

        Returns:
            ids and counts `[n]`, in no order; views that hold until the next call.
        """
        ids, counts = self._ids[: self._num_known], self._counts[: self._num_known]
        if draft_ids:
            known = [self._places[token_id] for token_id in draft_ids if token_id in self._places]
            new = [token_id for token_id in draft_ids if token_id not in self._places]
            new_ids, new_counts = np.unique(np.array(new, np.int64), return_counts=True)
            ids, counts = np.concatenate([ids, new_ids]), np.concatenate([counts, new_counts])
            np.add.at(counts, known, 1)
        return ids, counts

    def _learn(self, token_ids: list[int]) -> None:
        end = self._num_known + len(token_ids)
        if end > len(self._ids):
            capacity = max(end, 2 * len(self._ids))
            self._ids, self._counts = (np.resize(array, capacity) for array in (self._ids, self._counts))
        self._ids[self._num_known : end] = token_ids
        self._counts[self._num_known : end] = 0
        self._places.update(zip(token_ids, range(self._num_known, end), strict=True))
        self._num_known = end
