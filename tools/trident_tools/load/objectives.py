"""Objectives: the latencies that a request has to meet.

Owns the way they are written, and the decision whether a request meets them. Never measures a latency.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trident_tools.load.client_records import ClientRequestRecord

#: Metric -> its value for a request, in seconds; None, which meets every objective, where it has no value.
_LATENCIES: dict[str, Callable[[ClientRequestRecord], float | None]] = {
    "time_to_first_token": lambda record: record.time_to_first_token,
    "inter_token_latency": lambda record: record.inter_token_latency,
    "request_latency": lambda record: record.request_latency,
}


@dataclass(frozen=True)
class Objective:
    """A limit on one latency.

    Args:
        metric: time_to_first_token, inter_token_latency or request_latency.
        max_ms: the limit, in milliseconds.
    """

    metric: str
    max_ms: float

    def is_met(self, record: ClientRequestRecord) -> bool:
        """Return whether a request that ended well meets the objective."""
        seconds = _LATENCIES[self.metric](record)
        return seconds is None or seconds * 1000 <= self.max_ms

    def __str__(self) -> str:
        return f"{self.metric}:{self.max_ms:g}"


def parse_objective(text: str) -> Objective:
    """Read an objective such as `time_to_first_token:500`.

    Raises:
        argparse.ArgumentTypeError: there is no such metric, or its limit is not a positive number.
    """
    metric, _, limit = text.partition(":")
    if metric not in _LATENCIES:
        raise argparse.ArgumentTypeError(f"{metric!r} cannot be an objective: say one of {', '.join(_LATENCIES)}")
    try:
        max_ms = float(limit)
    except ValueError:
        max_ms = math.nan
    if not 0 < max_ms < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: say the limit in milliseconds, for example {metric}:500")
    return Objective(metric, max_ms)


def num_good(records: Sequence[ClientRequestRecord], objectives: Sequence[Objective]) -> int:
    """Count the requests that meet every objective; all of them must have ended well."""
    return sum(all(objective.is_met(record) for objective in objectives) for record in records)
