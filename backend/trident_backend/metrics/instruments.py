"""The kinds of metrics, and how their values get to Triton's server.

Owns what has been counted and not yet published. Never imports a metrics library: `Instruments` makes the metrics, and
every value given to one is a message from this process to the server. With tritonserver 2.51 one takes 25 us, 10 us of
them this process' CPU time. So a gauge sends only what has changed, all else is kept until it is published, and a
distribution has two forms:

- for what happens once a request, a histogram of the server's own, with one message for each value;
- for what happens every step or every token, a `BulkHistogram`: it is counted here and published as the counters that a
  histogram consists of, at a cost that does not grow with the load. Triton's API cannot add many values to a histogram
  at once. Names and labels are those that Prometheus gives a histogram, and PromQL goes by nothing else: `rate` and
  `histogram_quantile` work as ever. Only the type in the page's comments is `counter` for each series (for which
  Python's prometheus_client reads `..._bucket` as `..._bucket_total`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

Labels = Mapping[str, str]


class Instruments(Protocol):
    """Makes metrics. What it returns sends a value at once, and is used by one thread.

    A value that the server refuses (an increment below 0) may cost the server its life, so none is ever sent.
    """

    def gauge(self, family: str, description: str, labels: Labels) -> Callable[[float], None]:
        """Return a function that sets a gauge's value."""
        ...

    def counter(self, family: str, description: str, labels: Labels) -> Callable[[float], None]:
        """Return a function that adds to a counter; what is added is never below 0."""
        ...

    def histogram(
        self, family: str, description: str, labels: Labels, bounds: Sequence[float]
    ) -> Callable[[float], None]:
        """Return a function that adds one value to a histogram; `bounds` are its buckets' upper bounds, rising."""
        ...


class Gauge:
    """A value as it is now.

    Args:
        send: sets it at the server.
    """

    def __init__(self, send: Callable[[float], None]) -> None:
        self._send = send
        self._last: float | None = None

    def set(self, value: float) -> None:
        """Send the value if it has changed."""
        if value != self._last:
            self._send(value)
            self._last = value


class Counter:
    """A sum that only grows.

    Args:
        send: adds to it at the server.
    """

    def __init__(self, send: Callable[[float], None]) -> None:
        self._send = send
        self._pending = 0.0

    def add(self, amount: float) -> None:
        """Add to what the next `publish` sends."""
        assert amount >= 0
        self._pending += amount

    def publish(self) -> None:
        """Send what was added since the last time, if anything was."""
        if self._pending:
            self._send(self._pending)
            self._pending = 0.0


class Histogram:
    """A distribution of few values.

    Args:
        send: has the server observe one.
    """

    def __init__(self, send: Callable[[float], None]) -> None:
        self._send = send
        self._pending: list[float] = []

    def observe(self, value: float) -> None:
        """Add a value; the next `publish` sends it."""
        self._pending.append(value)

    def publish(self) -> None:
        """Send what was observed since the last time."""
        for value in self._pending:
            self._send(value)
        self._pending.clear()


class BulkHistogram:
    """A distribution of many values.

    Args:
        instruments: makes its counters.
        family: name of the histogram.
        description: what it is of.
        labels: of every series.
        bounds: inclusive upper bounds of the buckets, rising; one without a bound follows.
    """

    def __init__(
        self, instruments: Instruments, family: str, description: str, labels: Labels, bounds: Sequence[float]
    ) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._buckets = [
            Counter(instruments.counter(f"{family}_bucket", description, {**labels, "le": bound_label(bound)}))
            for bound in (*self._bounds, math.inf)
        ]
        self._sum = Counter(instruments.counter(f"{family}_sum", description, labels))
        self._count = Counter(instruments.counter(f"{family}_count", description, labels))

    def observe(self, value: float, count: int = 1) -> None:
        """Add a value `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum.add(value * count)

    def publish(self) -> None:
        """Send what was observed since the last time, if anything was."""
        cumulative = list(accumulate(self._counts))
        if not cumulative[-1]:
            return
        self._counts = [0] * len(self._counts)
        self._count.add(cumulative[-1])
        self._count.publish()
        # From the widest bucket down, so that a scrape in between finds none fuller than a wider one.
        for bucket, count in zip(reversed(self._buckets), reversed(cumulative), strict=True):
            bucket.add(count)
            bucket.publish()
        self._sum.publish()


def bound_label(bound: float) -> str:
    """Return a bucket's bound as Triton's server writes it: `0.25`, `1`, `+Inf`."""
    return "+Inf" if bound == math.inf else f"{bound:g}"
