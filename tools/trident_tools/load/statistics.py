"""The figures of a stage, computed from its records.

Owns which requests and tokens count, and the definition of every figure:

- A request counts if it was scheduled within the window, which begins when the ramp is over. It is followed to its end,
  also beyond the window.
- Requests that failed are counted by kind and enter no latency; tokens that they did receive count as throughput. A
  request that had not ended when the grace was over has failed.
- Throughputs count what happened within the window, whenever its request was sent: tokens that arrived, requests that
  ended.
- Goodput counts the requests of the first rule that met every objective.

Percentiles are numpy's, linear between samples. Names are those of aiperf. Never waits, reads a clock or prints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trident_tools.load.client_records import ClientRequestRecord, error_kind
from trident_tools.load.objectives import Objective, num_good

#: Every distribution's name and unit, in the order of a report.
DISTRIBUTIONS: Mapping[str, str] = {
    "time_to_first_token": "ms",
    "inter_token_latency": "ms",
    "inter_chunk_latency": "ms",
    "request_latency": "ms",
    "output_token_throughput_per_user": "tokens/s",
    "input_sequence_length": "tokens",
    "output_sequence_length": "tokens",
}
PERCENTILES = (50, 90, 95, 99)
_MAX_CURVE_POINTS = 200


@dataclass(frozen=True)
class MeasuredWindow:
    """The window in which a stage is measured: from `begin` up to `end`, in seconds of the records' clock."""

    begin: float
    end: float

    def __contains__(self, moment: float) -> bool:
        return self.begin <= moment < self.end

    @property
    def seconds(self) -> float:
        """Length of the window in seconds."""
        return self.end - self.begin

    def rate(self, count: float) -> float:
        """Return a count per second; 0 in a window that never began."""
        return count / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """A distribution in a few numbers, in its own unit, with percentiles by their number."""

    avg: float
    percentiles: Mapping[int, float]
    min: float
    max: float


@dataclass(frozen=True)
class StageFigures:
    """The figures of one stage.

    Args:
        num_requests: requests that count and ended well.
        errors: how many requests that count failed, by kind, the most frequent first.
        summaries: each distribution by name; one without samples is left out.
        curves: for each latency up to 200 quantiles, evenly spread from the minimum to the maximum.
        output_token_throughput: tokens per second.
        request_throughput: requests per second.
        goodput: requests per second; None without objectives.
        timeline: output tokens that arrived in each second from the start of the stage.
    """

    num_requests: int
    errors: Mapping[str, int]
    summaries: Mapping[str, Summary]
    curves: Mapping[str, tuple[float, ...]]
    output_token_throughput: float
    request_throughput: float
    goodput: float | None
    timeline: tuple[float, ...]

    @property
    def num_errors(self) -> int:
        """Number of requests that count and failed."""
        return sum(self.errors.values())


def measure(
    records: Sequence[ClientRequestRecord], started_at: float, window: MeasuredWindow, objectives: Sequence[Objective]
) -> StageFigures:
    """Compute the figures of one stage.

    Args:
        records: a record of every request of the stage, also of its ramp.
        started_at: when the stage began, on the records' clock.
        window: the window that is measured.
        objectives: the objectives that goodput counts; without any there is no goodput.
    """
    counted = [record for record in records if record.scheduled_at in window]
    good = [record for record in counted if not record.error]
    samples = _samples(good)
    times, tokens = _arrivals(records)
    ends = [record.chunk_times[-1] for record in records if not record.error]
    return StageFigures(
        num_requests=len(good),
        errors=dict(Counter(error_kind(record.error) for record in counted if record.error).most_common()),
        summaries={name: _summary(values) for name, values in samples.items() if len(values)},
        curves={name: _curve(samples[name]) for name, unit in DISTRIBUTIONS.items() if unit == "ms"},
        output_token_throughput=window.rate(float(tokens[(times >= window.begin) & (times < window.end)].sum())),
        request_throughput=window.rate(sum(end in window for end in ends)),
        goodput=window.rate(num_good(good, objectives)) if objectives else None,
        timeline=_timeline(times - started_at, tokens, window.end - started_at),
    )


def _samples(good: Sequence[ClientRequestRecord]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the values of each distribution, in its unit."""
    token_latencies = _known(record.inter_token_latency for record in good)
    return {
        "time_to_first_token": _known(record.time_to_first_token for record in good) * 1000.0,
        "inter_token_latency": token_latencies * 1000.0,
        "inter_chunk_latency": _known(gap for record in good for gap in record.inter_chunk_latencies) * 1000.0,
        "request_latency": _known(record.request_latency for record in good) * 1000.0,
        "output_token_throughput_per_user": np.reciprocal(token_latencies[token_latencies > 0]),
        "input_sequence_length": _known(record.num_input_tokens for record in good),
        "output_sequence_length": _known(record.num_output_tokens for record in good),
    }


def _known(values: Iterable[float | None]) -> npt.NDArray[np.float64]:
    return np.array([value for value in values if value is not None], np.float64)


def _summary(values: npt.NDArray[np.float64]) -> Summary:
    percentiles = np.percentile(values, PERCENTILES)
    return Summary(
        avg=float(values.mean()),
        percentiles=dict(zip(PERCENTILES, percentiles.tolist(), strict=True)),
        min=float(values.min()),
        max=float(values.max()),
    )


def _curve(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    if not len(values):
        return ()
    return tuple(np.quantile(values, np.linspace(0, 1, min(len(values), _MAX_CURVE_POINTS))).tolist())


def _arrivals(records: Sequence[ClientRequestRecord]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return when tokens arrived, and how many at each moment, also for failed requests."""
    times = np.array([moment for record in records for moment in record.chunk_times], np.float64)
    tokens = np.array([count for record in records for count in record.tokens_of_chunks()], np.float64)
    return times, tokens


def _timeline(times: npt.NDArray[np.float64], tokens: npt.NDArray[np.float64], seconds: float) -> tuple[float, ...]:
    """Return the tokens of each whole second; the last, incomplete one would look like a drop."""
    counts, _ = np.histogram(times, bins=np.arange(int(seconds) + 1), weights=tokens) if seconds >= 1 else ((), ())
    return tuple(float(count) for count in counts)
