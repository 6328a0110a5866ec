"""Which tokens stand in one sequence, and how often in its output.

Owns the counts, kept as arrays that change by one token at a time as the sequence grows. Never changes a logit.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import TypeVar

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Number = TypeVar("Number", np.int64, np.float32)


class TokenCounts:
    """The tokens of one growing sequence.

    Args:
        prompt: its first tokens; they are seen, but not counted.
    """

    def __init__(self, prompt: Tokens[int]) -> None:
        #: Ascending, so that an output's token is found in it by bisection, and the logits are read in order.
        self._prompt_ids: TokenIds = np.unique(np.array(prompt, np.int64))
        self._num_tokens = len(prompt)
        self._places: dict[int, int] = {}
        self._seen_ids, self._num_seen = self._prompt_ids, len(self._prompt_ids)
        self._counted_ids: TokenIds = np.empty(0, np.int64)
        self._counts: FloatArray = np.empty(0, np.float32)

    def follow(self, token_ids: Tokens[int]) -> None:
        """Count the output's new tokens; those counted before cost nothing.

        Args:
            token_ids: all of the sequence's.
        """
        for token_id in token_ids[self._num_tokens :]:
            place = self._places.get(token_id)
            if place is None:
                place = self._add(token_id)
            self._counts[place] += 1
        self._num_tokens = len(token_ids)

    def seen(self, draft_ids: Tokens[int] = ()) -> TokenIds:
        """Return the different tokens of prompt and output, `[n]`, in the order in which they were first seen.

        Args:
            draft_ids: guessed tokens, taken for further output.

        Returns:
            where there are no guesses a view that holds until the sequence grows.
        """
        ids = self._seen_ids[: self._num_seen]
        new = [token_id for token_id in dict.fromkeys(draft_ids) if not self._is_seen(token_id)]
        return np.concatenate([ids, np.array(new, np.int64)]) if new else ids

    def counted(self, draft_ids: Tokens[int] = ()) -> tuple[TokenIds, FloatArray]:
        """Return the different tokens of the output and how often each stands there, both `[n]`.

        Args:
            draft_ids: guessed tokens, taken for further output.

        Returns:
            ids in the order in which they were first counted, and counts; where there are no guesses both are views
            that hold until the sequence grows.
        """
        num_counted = len(self._places)
        ids, counts = self._counted_ids[:num_counted], self._counts[:num_counted]
        if draft_ids:
            new = [token_id for token_id in dict.fromkeys(draft_ids) if token_id not in self._places]
            places = self._places | {token_id: num_counted + index for index, token_id in enumerate(new)}
            ids = np.concatenate([ids, np.array(new, np.int64)])
            counts = np.concatenate([counts, np.zeros(len(new), np.float32)])
            np.add.at(counts, [places[token_id] for token_id in draft_ids], 1)
        return ids, counts

    def _is_seen(self, token_id: int) -> bool:
        return token_id in self._places or self._is_in_prompt(token_id)

    def _is_in_prompt(self, token_id: int) -> bool:
        place = int(self._prompt_ids.searchsorted(token_id))
        return place < len(self._prompt_ids) and int(self._prompt_ids[place]) == token_id

    def _add(self, token_id: int) -> int:
        """A token that the output has for the first time."""
        if not self._is_in_prompt(token_id):
            self._seen_ids = _with_room(self._seen_ids, self._num_seen)
            self._seen_ids[self._num_seen] = token_id
            self._num_seen += 1
        place = self._places[token_id] = len(self._places)
        self._counted_ids, self._counts = _with_room(self._counted_ids, place), _with_room(self._counts, place)
        self._counted_ids[place], self._counts[place] = token_id, 0
        return place


def _with_room(array: npt.NDArray[Number], length: int) -> npt.NDArray[Number]:
    """The array, or a longer copy where it is full; so to append costs the same however long it is."""
    return array if length < len(array) else np.concatenate([array, np.empty(max(16, length // 2), array.dtype)])
