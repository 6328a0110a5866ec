"""What a request adds to logits and bans at every place of its output.

Owns the parameters' form as arrays, made once a request. Never changes a logit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row

TokenIds = npt.NDArray[np.int64]


class RequestLogitBias:
    """Of one request's sequences.

    Args:
        sequence: one of them, whose parameters and ends count.
        vocab_size: tokens beyond it cannot be chosen, so that nothing need be done about them.
    """

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        params = sequence.sampling
        biases: dict[int, float] = {}
        for token_id, bias in params.logit_bias:
            biases[token_id] = biases.get(token_id, 0.0) + bias
        self.bias_ids = _ids(biases, vocab_size)
        self.biases = np.array([biases[token_id] for token_id in self.bias_ids.tolist()], np.float32)
        self._bad_ids = _ids({word[0] for word in params.bad_words if len(word) == 1}, vocab_size)
        self._end_ids = _ids(sequence.end_ids | sequence.stop_ids, vocab_size)
        #: The last tokens of longer words, by the tokens before.
        self._words: dict[tuple[int, ...], list[int]] = {}
        for word in params.bad_words:
            if len(word) > 1 and 0 <= word[-1] < vocab_size:
                self._words.setdefault(word[:-1], []).append(word[-1])
        self._lengths = sorted({len(beginning) for beginning in self._words})

    def banned_ids(self, row: Row) -> TokenIds:
        """The tokens that must not come at the row's place; some may stand twice."""
        sequence, parts = row.sequence, [self._bad_ids]
        if row.position - sequence.num_prompt_tokens < sequence.sampling.min_tokens:
            parts.append(self._end_ids)
        if self._words:
            parts.append(np.array(self._last_tokens(row), np.int64))
        return np.concatenate(parts)

    def _last_tokens(self, row: Row) -> list[int]:
        """Of the words of which only those are missing."""
        before = [*row.sequence.token_ids[-self._lengths[-1] :], *row.draft_ids]
        return [
            token_id
            for length in self._lengths
            if length <= len(before)
            for token_id in self._words.get(tuple(before[-length:]), ())
        ]


def _ids(token_ids: Iterable[int], vocab_size: int) -> TokenIds:
    return np.array([token_id for token_id in token_ids if 0 <= token_id < vocab_size], np.int64)
