"""The requests of a load: how long they are, and how many of them or for how long.

Owns the load's numbers and the drawing of lengths. Never says when a request is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trident_tools.load.distributions import Distribution


class SimulatedRequest(NamedTuple):
    """One request; the number counts them from 0."""

    number: int
    num_input_tokens: int
    num_output_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests alike in distribution. Exactly one of `num_requests` and `duration` is set.

    Args:
        input_tokens: of each prompt, without the shared prefix.
        output_tokens: generated for each; no text ends early.
        shared_prefix: tokens that all prompts begin with.
        ramp: seconds before requests count.
        num_requests: requests that count.
        duration: seconds in which requests count.
        overhead: seconds of a request outside the core, on its way in.
        seed: equal seeds give equal requests at equal times.
    """

    input_tokens: Distribution
    output_tokens: Distribution
    shared_prefix: int
    ramp: float
    num_requests: int | None
    duration: float | None
    overhead: float
    seed: int

    def requests(self) -> Iterator[SimulatedRequest]:
        """Without end."""
        random = np.random.default_rng([self.seed, 0])
        number = 0
        while True:
            inputs = self.input_tokens.sample(random, _BATCH)
            outputs = self.output_tokens.sample(random, _BATCH)
            for num_input_tokens, num_output_tokens in zip(inputs.tolist(), outputs.tolist(), strict=True):
                yield SimulatedRequest(number, self.shared_prefix + num_input_tokens, num_output_tokens)
                number += 1

    def gaps(self, rate: float) -> Iterator[float]:
        """Seconds between the requests of a Poisson process of `rate` a second, without end."""
        random = np.random.default_rng([self.seed, 1])
        while True:
            yield from random.exponential(1 / rate, _BATCH).tolist()


#: Lengths drawn at a time.
_BATCH = 4096
