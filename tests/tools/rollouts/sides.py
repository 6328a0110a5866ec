"""Figures of sides, made of requests.

Owns how a sample becomes a histogram with the gateway's own buckets. Never a gateway.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestRecord
from trident_tools.rollouts.figures import Histogram, SideFigures


def histogram(samples: Sequence[float], bounds: Sequence[float]) -> Histogram:
    """Return samples as a histogram with these finite bounds."""
    counts = dict.fromkeys((*bounds, math.inf), 0.0)
    for sample in samples:
        counts[(*bounds, math.inf)[bisect_left(bounds, sample)]] += 1
    return Histogram(counts, sum(samples))


def side(
    requests: int = 1000,
    *,
    errors: int = 0,
    refusals: int = 0,
    gone: int = 0,
    lengths: int | None = None,
    ejections: int = 0,
    ttft: Histogram | None = None,
    itl: Histogram | None = None,
) -> SideFigures:
    """Return figures of a side; half of the answers end by their length if nothing is said."""
    return SideFigures(
        requests,
        errors,
        refusals,
        gone,
        requests - errors - refusals,
        (requests - errors - refusals) // 2 if lengths is None else lengths,
        ejections,
        Histogram() if ttft is None else ttft,
        Histogram() if itl is None else itl,
    )


def page(*records: RequestRecord) -> str:
    """Return the page of a gateway that has answered requests, without its servers."""
    metrics = Metrics()
    for record in records:
        metrics.count_request(record)
    return metrics.render().decode()
