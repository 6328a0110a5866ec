"""Log probabilities of chosen and of known tokens, in the model's own distribution.

Owns their arithmetic. Never chooses.
"""

from __future__ import annotations

import collections.abc as cabc

import numpy as np

from trident_backend.engine.protocol import Indices, StepLogits
from trident_backend.sampling.logits_processors import ModifiedLogits
from trident_backend.sampling.top_k import top_k
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.steps import Row


class LogProbs:
    """Log probabilities of one step. It is to be made before the logits processors run, as it reads the raw logits.

    Args:
        logits: `[R, vocab_size]`, as the network computed them.
        rows: what each of the R rows is for.
        wanted: `[n]`, the rows whose token's log probability is wanted, ascending.
    """

    def __init__(self, logits: StepLogits, rows: cabc.Sequence[Row], wanted: Indices) -> None:
        self._logits = logits
        self._log_sums: dict[int, float] = {}
        self._tops: dict[int, tuple[list[int], list[float]]] = {}
        if wanted.size:
            _, maxima = logits.argmax(wanted)
            exp_sums = logits.chunk_exp_sums(wanted, maxima, np.ones(len(wanted)))
            with np.errstate(invalid="ignore"):
                log_sums = maxima + np.log(exp_sums.sum(axis=1))
            self._log_sums = dict(zip(wanted.tolist(), log_sums.tolist(), strict=True))
            self._find_tops(rows)

    def of(self, token_ids: list[int], moved: list[ModifiedLogits]) -> dict[int, TokenLogProbs]:
        """Return the log probabilities by row, of those rows that want them and have a token.

        Args:
            token_ids: `[R]`, of each row of the step.
            moved: the logits that logits processors have changed since, the earliest first.
        """
        result: dict[int, TokenLogProbs] = {}
        found = [(number, log_sum) for number, log_sum in self._log_sums.items() if token_ids[number] >= 0]
        if not found:
            return result
        numbers = [number for number, _ in found]
        values = self._logits.read(np.array(numbers), np.array([token_ids[number] for number in numbers]))
        for (number, log_sum), changed in zip(found, values.tolist(), strict=True):
            value = changed
            for each in reversed(moved):
                # Bans leave the logit of a chosen token as it was.
                value = each.before(number, token_ids[number], value)
            top_ids, top_logits = self._tops.get(number, ((), ()))
            tops = tuple(logit - log_sum for logit in top_logits)
            result[number] = TokenLogProbs(value - log_sum, tuple(top_ids), tops)
        return result

    def _find_tops(self, rows: cabc.Sequence[Row]) -> None:
        vocab_size = self._logits.shape[1]
        counts = {
            number: min(rows[number].sequence.sampling.num_top_log_probs, vocab_size) for number in self._log_sums
        }
        asked = [(number, count) for number, count in counts.items() if count]
        if asked:
            numbers, wanted_counts = np.array(asked, np.int64).T
            values, ids = top_k(self._logits, numbers, wanted_counts)
            for (number, count), row_ids, row_values in zip(asked, ids.tolist(), values.tolist(), strict=True):
                self._tops[number] = row_ids[:count], row_values[:count]
