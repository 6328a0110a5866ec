"""Which of several servers takes a call.

Owns the rule. It is given what is known of the servers, and a source of random numbers, and never asks anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from trident_gateway.upstream.metrics_page import CoreFigures

#: A server keeps the calls that prefer it while its load is at most this much of the other's, and a call more.
AFFINITY_FACTOR = 1.5


@dataclass(frozen=True)
class Candidate:
    """One server that could take a call.

    Args:
        name: the server's.
        num_in_flight: calls of this gateway that it has now.
        figures: what it has lately said of itself; None where that is unknown or old.
    """

    name: str
    num_in_flight: int
    figures: CoreFigures | None = None

    @property
    def load(self) -> float:
        """How busy it is, in requests.

        What it says of itself covers other gateways' calls but is up to a second old; this gateway's own count is
        exact. Requests that wait count twice, and all of them up to double as the KV cache fills.
        """
        if self.figures is None:
            return float(self.num_in_flight)
        requests = max(float(self.num_in_flight), self.figures.num_active) + self.figures.num_waiting
        return requests * (1.0 + self.figures.kv_fraction)


@dataclass(frozen=True)
class Pick:
    """A choice, and why: `only`, `affinity` or `load`."""

    name: str
    reason: str


def pick(candidates: Sequence[Candidate], affinity: bytes, draw: Random) -> Pick:
    """Choose one of the candidates, of which there must be some.

    The one that the affinity prefers, which is the same for as long as it is there, unless it is much busier than
    another; else the less busy one of two that are drawn. Drawing keeps several gateways, whose figures are equally
    old, from running to the same server.
    """
    if len(candidates) == 1:
        return Pick(candidates[0].name, "only")
    first, second = draw.sample(candidates, 2)
    lighter = second if second.load < first.load else first
    if affinity:
        preferred = max(candidates, key=lambda candidate: _weight(affinity, candidate.name))
        if preferred.load <= AFFINITY_FACTOR * lighter.load + 1:
            return Pick(preferred.name, "affinity")
    return Pick(lighter.name, "load")


def _weight(affinity: bytes, name: str) -> bytes:
    """Return a hash that orders the servers, differently for each affinity, however many others there are."""
    return hashlib.blake2b(affinity, digest_size=8, key=hashlib.sha256(name.encode()).digest()).digest()
