"""The requests of a load: their lengths, and how many there are or for how long they come.

Owns the numbers of the load and the drawing of lengths. Never decides when a request is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trident_tools.load.distributions import Distribution


class SimulatedRequest(NamedTuple):
    """One request of a load; requests are numbered from 0."""

    number: int
    num_input_tokens: int
    num_output_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests of one distribution. Exactly one of `num_requests` and `duration` is set.

    Args:
        input_tokens: tokens of each prompt, without the shared prefix.
        output_tokens: tokens generated for each request; no output ends early.
        shared_prefix: tokens with which all prompts begin.
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
        """Yield requests without end."""
        random = np.random.default_rng([self.seed, 0])
        number = 0
        while True:
            inputs = self.input_tokens.sample(random, _BATCH)
            outputs = self.output_tokens.sample(random, _BATCH)
            for num_input_tokens, num_output_tokens in zip(inputs.tolist(), outputs.tolist(), strict=True):
                yield SimulatedRequest(number, self.shared_prefix + num_input_tokens, num_output_tokens)
                number += 1

    def gaps(self, rate: float) -> Iterator[float]:
        """Yield, without end, the seconds between the requests of a Poisson process of `rate` per second."""
        random = np.random.default_rng([self.seed, 1])
        while True:
            yield from random.exponential(1 / rate, _BATCH).tolist()


#: How many lengths are drawn at a time.
_BATCH = 4096
