"""Log probabilities of chosen and of known tokens, in the model's own distribution.

Owns their arithmetic. Never chooses.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from trident_backend.sampling.choices import NO_TOKEN, TokenLogProbs
from trident_backend.sampling.edits import moves
from trident_backend.sampling.row_kernels import RowKernels
from trident_backend.steps import Row


class LogProbs:
    """Of one step; made before its logits are edited.

    Args:
        kernels: on the step's logits, as the network gave them.
        rows: what each is for.
    """

    def __init__(self, kernels: RowKernels, rows: Rows[Row]) -> None:
        self._logits = kernels.logits
        self._wanted = [number for number, row in enumerate(rows) if _is_wanted(row)]
        self._log_sums: list[float] = []
        self._tops: dict[int, tuple[list[int], list[float]]] = {}
        #: Whole rows, as it is not known yet which token is chosen. Bans alone leave that one's logit as it was.
        self._originals = {
            number: self._logits[number].copy()
            for number in self._wanted
            if not rows[number].is_scored and moves(rows[number].sequence.sampling)
        }
        if self._wanted:
            numbers = np.array(self._wanted)
            _, maxima = kernels.likeliest(numbers)
            masses = kernels.masses(numbers, maxima, np.ones(len(numbers)))
            with np.errstate(invalid="ignore"):
                self._log_sums = (maxima + np.log(masses.sum(axis=1))).tolist()
            self._find_tops(kernels, rows)

    def of(self, token_ids: list[int]) -> dict[int, TokenLogProbs]:
        """By row, of those rows that want them and have a token.

        Args:
            token_ids: of each row of the step.
        """
        result = {}
        for number, log_sum in zip(self._wanted, self._log_sums, strict=True):
            token_id = token_ids[number]
            if token_id != NO_TOKEN:
                logits = self._originals.get(number, self._logits[number])
                top_ids, top_logits = self._tops.get(number, ((), ()))
                tops = tuple(logit - log_sum for logit in top_logits)
                result[number] = TokenLogProbs(float(logits[token_id]) - log_sum, tuple(top_ids), tops)
        return result

    def _find_tops(self, kernels: RowKernels, rows: Rows[Row]) -> None:
        vocab_size = self._logits.shape[1]
        counts = [min(rows[number].sequence.sampling.num_top_log_probs, vocab_size) for number in self._wanted]
        asked = [(number, count) for number, count in zip(self._wanted, counts, strict=True) if count]
        if asked:
            numbers, wanted_counts = np.array(asked, np.int64).T
            values, ids = kernels.largest(numbers, wanted_counts)
            for (number, count), row_ids, row_values in zip(asked, ids.tolist(), values.tolist(), strict=True):
                self._tops[number] = row_ids[:count], row_values[:count]


def _is_wanted(row: Row) -> bool:
    params = row.sequence.sampling
    return params.prompt_log_probs if row.is_scored else params.log_probs
