"""Latencies that a request has to meet, and which requests meet them.

Owns how they are written and judged. Never counts requests.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trident_tools.load.client_records import ClientRequestRecord

#: Metric -> its value of a request, in seconds; None where it has none, which meets every objective.
_LATENCIES: dict[str, Callable[[ClientRequestRecord], float | None]] = {
    "time_to_first_token": lambda record: record.time_to_first_token,
    "inter_token_latency": lambda record: record.inter_token_latency,
    "request_latency": lambda record: record.request_latency,
}


@dataclass(frozen=True)
class Objective:
    """One latency's limit.

    Args:
        metric: time_to_first_token, inter_token_latency or request_latency.
        max_ms: the most it may be, milliseconds.
    """

    metric: str
    max_ms: float

    def is_met(self, record: ClientRequestRecord) -> bool:
        """Whether a request that ended well was quick enough."""
        seconds = _LATENCIES[self.metric](record)
        return seconds is None or seconds * 1000 <= self.max_ms

    def __str__(self) -> str:
        return f"{self.metric}:{self.max_ms:g}"


def parse_objective(text: str) -> Objective:
    """An objective as it is written: `time_to_first_token:500`.

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
    """How many of these requests, which all ended well, meet every objective."""
    return sum(all(objective.is_met(record) for objective in objectives) for record in records)
