"""The choice between two number formats on a CPU, by trying both.

Owns the decision: what a try consists of, how many there are, and by how much a faster format must be faster. A CPU's
instruction sets do not tell: concluding from them was wrong by a factor of two. Never compiles a network; `probe` does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trident_ensemble.contract.manifest import PrecisionChoice, PrecisionTrial

#: What a try computes: a prompt of so many tokens, and one token of each of so many sequences.
PROMPT_TOKENS, DECODE_SEQUENCES = 128, 32
#: Answers as long as prompts, as conversations have them: so many decoding steps go with each prompt.
_DECODE_STEPS = PROMPT_TOKENS // DECODE_SEQUENCES
_MIN_ROUNDS, _MAX_ROUNDS = 7, 15
#: Rounds beyond the fewest end after so long.
_ROUNDS_SECONDS = 0.2
#: What is called faster wins three rounds of four, and the best of all rounds, by at least this much.
_LEAST_GAIN = 1.05


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one round's prompt and decoding step."""

    prompt_ms: float
    decode_ms: float

    @property
    def cost(self) -> float:
        """The milliseconds for a prompt and its share of the steps that generate as many tokens."""
        return self.prompt_ms + _DECODE_STEPS * self.decode_ms


#: Computes one round of a format.
Probe = Callable[[], Sample]


@dataclass(frozen=True)
class Trials:
    """The rounds of two formats, taken in turn.

    Args:
        exact: of the more exact format.
        other: of the other one, as many.
    """

    exact: tuple[Sample, ...]
    other: tuple[Sample, ...]

    def gain(self) -> float:
        """Return how many times as fast the other format is, in the median of the rounds."""
        return statistics.median(self._ratios())

    def other_wins(self) -> bool:
        """Return whether the other format is faster by more than noise."""
        return min(statistics.quantiles(self._ratios(), n=4)[0], self._best_ratio()) >= _LEAST_GAIN

    def exact_wins(self) -> bool:
        """Return whether the more exact format is faster by more than noise."""
        return max(statistics.quantiles(self._ratios(), n=4)[2], self._best_ratio()) <= 1 / _LEAST_GAIN

    def _best_ratio(self) -> float:
        """Return how many times as fast the other format is at its best: neighbours on the machine only ever slow."""
        return min(sample.cost for sample in self.exact) / min(sample.cost for sample in self.other)

    def _ratios(self) -> list[float]:
        return [exact.cost / other.cost for exact, other in zip(self.exact, self.other, strict=True)]


def run_trials(exact: Probe, other: Probe, clock: Callable[[], float] = time.perf_counter) -> Trials:
    """Run both in turn, so that other load on the machine slows both.

    Args:
        exact: of the more exact format.
        other: of the other one.
        clock: seconds.
    """
    exact(), other()  # what is done once, at a network's first steps, is no step's time
    rounds: list[tuple[Sample, Sample]] = []
    end = clock() + _ROUNDS_SECONDS
    while len(rounds) < _MIN_ROUNDS or (len(rounds) < _MAX_ROUNDS and clock() < end):
        rounds.append((exact(), other()))
    return Trials(tuple(pair[0] for pair in rounds), tuple(pair[1] for pair in rounds))


def choose(exact: str, other: str, trials: Trials, cpu: str) -> tuple[str, PrecisionChoice]:
    """Return the format to compute in, and what it was chosen by.

    Args:
        exact: the more exact format.
        other: the other one.
        trials: of both.
        cpu: the model of the CPU that ran them.
    """
    gain = trials.gain()
    if trials.other_wins():
        chosen, reason = other, f"{gain:.2f} times as fast as {exact}"
    elif trials.exact_wins():
        chosen, reason = exact, f"{1 / gain:.2f} times as fast as {other}, and more exact"
    else:
        chosen, reason = exact, f"more exact, and as fast as {other} but for noise"
    return chosen, PrecisionChoice(reason, cpu, (_medians(exact, trials.exact), _medians(other, trials.other)))


def _medians(compute: str, samples: Sequence[Sample]) -> PrecisionTrial:
    prompt = statistics.median(sample.prompt_ms for sample in samples)
    decode = statistics.median(sample.decode_ms for sample in samples)
    return PrecisionTrial(compute, round(prompt, 3), round(decode, 3))
