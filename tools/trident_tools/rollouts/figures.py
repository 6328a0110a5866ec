"""What gateways have counted of both sides during a window.

Owns the sums and what can be read from a histogram: its mean, and between which bounds a quantile lies. Never fetches a
page and never judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class Histogram:
    """Observations by upper bounds, as Prometheus has them.

    Args:
        counts: upper bound -> observations between it and the next lower one; the last bound is infinite.
        total: the sum of all observations, which is exact.
    """

    counts: Mapping[float, float] = field(default_factory=dict)
    total: float = 0.0

    def __add__(self, other: Histogram) -> Histogram:
        """Return both together."""
        bounds = sorted({*self.counts, *other.counts})
        counts = {bound: self.counts.get(bound, 0.0) + other.counts.get(bound, 0.0) for bound in bounds}
        return Histogram(counts, self.total + other.total)

    def __sub__(self, other: Histogram) -> Histogram:
        """Return what came after another reading of the same series."""
        counts = {bound: count - other.counts.get(bound, 0.0) for bound, count in self.counts.items()}
        return Histogram(counts, self.total - other.total)

    @property
    def count(self) -> float:
        """The number of observations."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """The mean of all observations; exact, whatever the bounds are. 0 without observations."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """The variance of the observations, which are taken to lie evenly between the bounds of their bucket."""
        if not self.count:
            return 0.0
        mean = spread = square = lower = 0.0
        for bound in sorted(self.counts):
            upper = lower if math.isinf(bound) else bound
            share = self.counts[bound] / self.count
            mean += share * (lower + upper) / 2
            square += share * ((lower + upper) / 2) ** 2
            spread += share * (upper - lower) ** 2 / 12
            lower = bound
        return max(0.0, square - mean**2) + spread

    def above(self, bound: float) -> float:
        """Return how many observations lie above one of the bounds."""
        return sum(count for upper, count in self.counts.items() if upper > bound)

    def quantile_edges(self, share: float) -> tuple[float, float]:
        """Return the bounds between which a quantile lies; (0, inf) without observations."""
        rank, seen, lower = share * self.count, 0.0, 0.0
        for bound in sorted(self.counts):
            seen += self.counts[bound]
            if seen >= rank and seen > 0:
                return lower, bound
            lower = bound
        return 0.0, math.inf

    def quantile(self, share: float) -> float:
        """Return a quantile as Prometheus does: on a straight line between its bounds; NaN without observations.

        One that lies above the last finite bound is that bound.
        """
        if not self.count:
            return math.nan
        lower, upper = self.quantile_edges(share)
        if math.isinf(upper):
            return lower
        below = self.count - self.above(lower) if lower else 0.0
        return lower + (upper - lower) * (share * self.count - below) / self.counts[upper]


@dataclass(frozen=True)
class SideFigures:
    """The counts of one side.

    Args:
        requests: for text that were answered, with whatever status; not those that a limit has refused (429).
        errors: of these, failures of a server: a status of 500 or more, a stream that ended with an error, or a call
            that the canary could not take, so that the stable side did.
        refusals: of these, requests that were refused as wrong (400).
        gone: requests whose client left before the answer began, which are none of `requests`.
        finishes: answers that have ended, with any reason.
        lengths: of these, those that ended because their length was reached.
        ejections: times that a server was taken out of rotation, or was found to have started anew.
        ttft: seconds to the first part of a stream.
        itl: seconds between two parts of a stream.
    """

    requests: float = 0.0
    errors: float = 0.0
    refusals: float = 0.0
    gone: float = 0.0
    finishes: float = 0.0
    lengths: float = 0.0
    ejections: float = 0.0
    ttft: Histogram = Histogram()
    itl: Histogram = Histogram()

    def __add__(self, other: SideFigures) -> SideFigures:
        """Return both together."""
        return SideFigures(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def since(self, before: SideFigures) -> SideFigures:
        """Return what came after another reading of the same gateway; all of it where that has started anew since."""
        if self.has_restarted(before):
            return self
        after = SideFigures(*(getattr(self, one.name) - getattr(before, one.name) for one in fields(self)))
        # Servers that have left the gateway take their ejections with them.
        return replace(after, ejections=max(0.0, after.ejections))

    def has_restarted(self, before: SideFigures) -> bool:
        """Return whether counters stand below those of an earlier reading, as only a restart makes them."""
        return (
            self.requests < before.requests
            or self.finishes < before.finishes
            or self.ttft.count < before.ttft.count
            or self.itl.count < before.itl.count
        )


@dataclass(frozen=True)
class Window:
    """The counts of both sides in the same time."""

    stable: SideFigures = SideFigures()
    canary: SideFigures = SideFigures()

    def __add__(self, other: Window) -> Window:
        """Return both together."""
        return Window(self.stable + other.stable, self.canary + other.canary)
