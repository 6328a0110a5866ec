"""Steps of all options mixed: each row against the reference, alone and in any company."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.sampling.test_sampling_reference import Mask, edited, filtered, sequence_of
from trident_backend.engine.host_logits import HostLogits, VocabularyKernels
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import FloatArray, Int32Array
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequences.choices import NO_TOKEN, NOT_FINITE, Choices
from trident_backend.sequences.guide import MASK_WORD, RowMasks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.steps import Row

#: No multiple of a chunk, a word or a byte.
VOCAB = 523


class Crowd:
    """A step of random rows: sequences of any options, draft tokens, prompts to be scored, masks, and odd logits.

    Args:
        seed: of everything.
    """

    def __init__(self, seed: int) -> None:
        rng = self._rng = np.random.default_rng(seed)
        self.rows: list[Row] = []
        for _ in range(rng.integers(1, 12)):
            prompt = rng.integers(0, VOCAB, rng.integers(2, 40)).tolist()
            output = rng.integers(0, 30, rng.integers(0, 30)).tolist()
            ends = {"end_ids": frozenset({1, VOCAB + 5}), "stop_ids": frozenset({int(rng.integers(0, VOCAB))})}
            sequence = sequence_of(self._params(output), prompt, output, **ends)
            if not output and rng.random() < 0.5:
                self.rows += [Row(sequence, place) for place in range(1, rng.integers(2, len(prompt) + 1))]
            drafts = tuple(rng.integers(0, 30, rng.integers(0, 4) if rng.random() < 0.3 else 0).tolist())
            end = sequence.num_tokens
            self.rows += [Row(sequence, end + index, drafts[:index]) for index in range(len(drafts) + 1)]
        self.logits = rng.normal(0, rng.uniform(0.1, 5), (len(self.rows), VOCAB)).astype(np.float32)
        if rng.random() < 0.3:
            self.logits = np.round(self.logits)
        self.logits[rng.random(self.logits.shape) < rng.choice([0, 0.1])] = -np.inf
        self.masks: dict[int, Mask] = {}
        for number, row in enumerate(self.rows):
            if not row.is_scored and rng.random() < 0.3:
                self.masks[number] = rng.random(VOCAB) < rng.choice([0.0, 0.02, 0.9])

    def _params(self, output: list[int]) -> SamplingParams:
        rng = self._rng

        def often(value: float | int, neutral: float | int, share: float = 0.4) -> float | int:
            return value if rng.random() < share else neutral

        tokens = rng.integers(0, 30, 6).tolist()
        return SamplingParams(
            temperature=float(often(rng.uniform(0.2, 3), 0, 0.8)),
            top_k=int(often(rng.integers(1, VOCAB + 9), 0)),
            top_p=float(often(rng.uniform(0.05, 1), 1)),
            min_p=float(often(rng.uniform(0, 1), 0)),
            repetition_penalty=float(often(rng.uniform(0.5, 2), 1)),
            presence_penalty=float(often(rng.uniform(-2, 2), 0)),
            frequency_penalty=float(often(rng.uniform(-2, 2), 0)),
            logit_bias=tuple((token_id, float(rng.normal())) for token_id in {*tokens[:3]}) if often(1, 0) else (),
            bad_words=((tokens[0],), (*output[-2:], tokens[1]), (tokens[2], 3)) if often(1, 0) else (),
            min_tokens=int(often(rng.integers(0, 40), 0)),
            seed=int(rng.integers(0, 2**63)),
            index=int(rng.integers(0, 3)),
            log_probs=bool(often(1, 0)),
            prompt_log_probs=bool(often(1, 0, 0.8)),
            num_top_log_probs=int(often(rng.integers(1, 21), 0)),
        )

    def choose(self, kernels: VocabularyKernels, numbers: list[int]) -> Choices:
        """What the sampler makes of these rows, in this order."""
        rows = [self.rows[number] for number in numbers]
        return Sampler(VOCAB).choose(HostLogits(self.logits[numbers], kernels), rows, self.row_masks(numbers))

    def row_masks(self, numbers: list[int]) -> RowMasks | None:
        """The masks of these rows, in this order."""
        masked = [index for index, number in enumerate(numbers) if number in self.masks]
        words = np.zeros((len(masked), -(-VOCAB // MASK_WORD)), np.uint32)
        for index, place in enumerate(masked):
            for token_id in np.flatnonzero(self.masks[numbers[place]]).tolist():
                words[index, token_id // MASK_WORD] |= np.uint32(1) << np.uint32(token_id % MASK_WORD)
        return RowMasks(np.array(masked, np.intp), words) if masked else None

    def check(self, kernels: VocabularyKernels) -> None:
        """All rows together, against the reference, each alone, and a part of them in another order."""
        everything = list(range(len(self.rows)))
        together = self.choose(kernels, everything)
        for number in everything:
            self._check_row(number, together)
            self._check_same(together, number, self.choose(kernels, [number]), 0)
        some = self._rng.permutation(everything)[: len(everything) * 2 // 3].tolist()
        apart = self.choose(kernels, some)
        for index, number in enumerate(some):
            self._check_same(together, number, apart, index)

    def _check_row(self, number: int, choices: Choices) -> None:
        row, params = self.rows[number], self.rows[number].sequence.sampling
        token_id = choices.token_ids[number]
        if row.is_scored:
            assert token_id == row.sequence.token_ids[row.position]
        else:
            logits = edited(self.logits[number], row, self.masks.get(number))
            if not np.isfinite(logits).any():
                assert token_id == (NO_TOKEN if np.isneginf(logits).all() else NOT_FINITE)
            else:
                assert filtered(logits, params)[token_id] > 0 or filtered(logits, _wider(params))[token_id] > 0
        wanted = params.prompt_log_probs if row.is_scored else params.log_probs
        assert (number in choices.log_probs) == (wanted and token_id >= 0)
        if number in choices.log_probs:
            log_prob, top_ids, top_log_probs = choices.log_probs[number]
            raw = self.logits[number].astype(np.float64)
            expected = raw - raw.max() - np.log(np.exp(raw - raw.max()).sum())
            assert log_prob == pytest.approx(expected[token_id], abs=1e-4)
            order = np.lexsort((np.arange(VOCAB), -raw))[: params.num_top_log_probs]
            assert list(top_ids) == order.tolist()
            assert list(top_log_probs) == pytest.approx(expected[order].tolist(), abs=1e-4)

    @staticmethod
    def _check_same(some: Choices, number: int, others: Choices, other_number: int) -> None:
        assert some.token_ids[number] == others.token_ids[other_number]
        assert some.log_probs.get(number) == others.log_probs.get(other_number)


def _wider(params: SamplingParams) -> SamplingParams:
    """The same with bounds that single precision may have meant."""
    return SamplingParams(params.temperature, params.top_k, params.top_p + 1e-5, params.min_p - 1e-5)


class ContraryKernels(NumpyKernels):
    """Of equals the highest ids come first, as they may."""

    def top_k(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        values, ids = super().top_k(np.ascontiguousarray(logits[:, ::-1]), count)
        return values, logits.shape[1] - 1 - ids


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [NumpyKernels(), ContraryKernels()])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_sampling_crowds_a_row_gets_what_it_asks_for_in_any_company(kernels: VocabularyKernels, seed: int) -> None:
    Crowd(seed).check(kernels)
