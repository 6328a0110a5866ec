"""Log probabilities of chosen and of known tokens, in the model's own distribution.

Owns their arithmetic. Never chooses.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from trident_backend.engine.protocol import StepLogits
from trident_backend.sampling.logits_processors import ModifiedLogits
from trident_backend.sampling.top_k import top_k
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.steps import Row


class LogProbs:
    """Of one step; made before its logits are edited.

    Args:
        logits: as the network gave them.
        rows: what each is for.
    """

    def __init__(self, logits: StepLogits, rows: Rows[Row]) -> None:
        self._logits = logits
        self._wanted = [number for number, row in enumerate(rows) if _is_wanted(row)]
        self._log_sums: dict[int, float] = {}
        self._tops: dict[int, tuple[list[int], list[float]]] = {}
        if self._wanted:
            numbers = np.array(self._wanted)
            _, maxima = logits.argmax(numbers)
            masses = logits.chunk_exp_sums(numbers, maxima, np.ones(len(numbers)))
            with np.errstate(invalid="ignore"):
                log_sums = maxima + np.log(masses.sum(axis=1))
            self._log_sums = dict(zip(self._wanted, log_sums.tolist(), strict=True))
            self._find_tops(rows)

    def of(self, token_ids: list[int], moved: list[ModifiedLogits]) -> dict[int, TokenLogProbs]:
        """By row, of those rows that want them and have a token.

        Args:
            token_ids: of each row of the step.
            moved: by the edits since, the earliest first.
        """
        result: dict[int, TokenLogProbs] = {}
        found = [(number, log_sum) for number, log_sum in self._log_sums.items() if token_ids[number] >= 0]
        if not found:
            return result
        numbers = [number for number, _ in found]
        values = self._logits.read(np.array(numbers), np.array([token_ids[number] for number in numbers]))
        for (number, log_sum), edited in zip(found, values.tolist(), strict=True):
            value = edited
            for edit in reversed(moved):
                # Bans leave the logit of a chosen token as it was.
                value = edit.before(number, token_ids[number], value)
            top_ids, top_logits = self._tops.get(number, ((), ()))
            tops = tuple(logit - log_sum for logit in top_logits)
            result[number] = TokenLogProbs(value - log_sum, tuple(top_ids), tops)
        return result

    def _find_tops(self, rows: Rows[Row]) -> None:
        vocab_size = self._logits.shape[1]
        counts = [min(rows[number].sequence.sampling.num_top_log_probs, vocab_size) for number in self._wanted]
        asked = [(number, count) for number, count in zip(self._wanted, counts, strict=True) if count]
        if asked:
            numbers, wanted_counts = np.array(asked, np.int64).T
            values, ids = top_k(self._logits, numbers, wanted_counts)
            for (number, count), row_ids, row_values in zip(asked, ids.tolist(), values.tolist(), strict=True):
                self._tops[number] = row_ids[:count], row_values[:count]


def _is_wanted(row: Row) -> bool:
    params = row.sequence.sampling
    return params.prompt_log_probs if row.is_scored else params.log_probs
