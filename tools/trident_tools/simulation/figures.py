"""The figures of a simulated load.

Owns their names, which are those of `trident bench` where it has the same figures, and their units: milliseconds for
latencies, seconds for the clock. Never simulates and never prints.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from trident_tools.simulation.measurements import GapHistogram, Measurements


@dataclass(frozen=True)
class Spread:
    """A latency over all requests, in milliseconds; 0 where there was none."""

    avg: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    min: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class SimulatedFigures:
    """The figures of one load.

    Args:
        window_seconds: length of the window in which requests and tokens count.
        num_requests: requests that count and were served.
        num_refused: requests that no replica took, counted or not.
        time_to_first_token: the latency of requests that count, as are the other three.
        inter_token_latency: the mean time between the tokens of a request.
        inter_chunk_latency: the time between any two successive tokens of a stream, to half a percent.
        queue_time: the time in the core until a request first ran.
        request_throughput: requests per second that ended.
        output_token_throughput: output tokens per second.
        total_token_throughput: output and prompt tokens per second.
        num_running: mean number of sequences in the cache of a replica.
        num_waiting: mean number of sequences in the queue of a replica.
        step_tokens: mean number of tokens in a step.
        kv_use: mean share of KV blocks in use.
        kv_use_max: share of KV blocks in use on the fullest replica.
        num_preemptions: preemptions of requests that count.
        prefix_hit_rate: share of prompt tokens found in the cache.
        utilization: share of time in which a replica computes.
        cost_per_million_output_tokens: cost in the price's currency; None without a price.
        cost_per_million_tokens: cost of a million output and prompt tokens.
    """

    window_seconds: float
    num_requests: int
    num_refused: int
    time_to_first_token: Spread
    inter_token_latency: Spread
    inter_chunk_latency: Spread
    request_latency: Spread
    queue_time: Spread
    request_throughput: float
    output_token_throughput: float
    total_token_throughput: float
    num_running: float
    num_waiting: float
    step_tokens: float
    kv_use: float
    kv_use_max: float
    num_preemptions: int
    prefix_hit_rate: float
    utilization: float
    cost_per_million_output_tokens: float | None
    cost_per_million_tokens: float | None


def figures(measured: Measurements, price_per_hour: float | None) -> SimulatedFigures:
    """Compute the figures of a load; `price_per_hour` is the price of one replica."""
    seconds = measured.window_seconds
    replica_seconds = seconds * measured.num_replicas
    num_tokens = measured.num_output_tokens + measured.num_input_tokens
    price = None if price_per_hour is None else price_per_hour / 3600 * replica_seconds
    return SimulatedFigures(
        window_seconds=seconds,
        num_requests=len(measured.latency),
        num_refused=measured.num_refused,
        time_to_first_token=_spread(measured.first_token),
        inter_token_latency=_spread(measured.inter_token),
        inter_chunk_latency=_gap_spread(measured.gaps),
        request_latency=_spread(measured.latency),
        queue_time=_spread(measured.queue),
        request_throughput=_ratio(measured.num_requests, seconds),
        output_token_throughput=_ratio(measured.num_output_tokens, seconds),
        total_token_throughput=_ratio(num_tokens, seconds),
        num_running=_ratio(measured.running_seconds, replica_seconds),
        num_waiting=_ratio(measured.waiting_seconds, replica_seconds),
        step_tokens=_ratio(measured.num_step_tokens, measured.num_steps),
        kv_use=_ratio(measured.kv_seconds, replica_seconds),
        kv_use_max=measured.kv_max,
        num_preemptions=measured.num_preemptions,
        prefix_hit_rate=_ratio(measured.num_cached_tokens, measured.num_prompt_tokens),
        utilization=_ratio(measured.busy_seconds, replica_seconds),
        cost_per_million_output_tokens=_cost(price, measured.num_output_tokens),
        cost_per_million_tokens=_cost(price, num_tokens),
    )


def _spread(seconds: array[float]) -> Spread:
    if not seconds:
        return Spread()
    values = np.frombuffer(seconds) * 1000
    return Spread(float(values.mean()), *np.percentile(values, _PERCENTS).tolist())


def _gap_spread(gaps: GapHistogram) -> Spread:
    return Spread(gaps.average * 1000, *(gaps.percentile(percent) * 1000 for percent in _PERCENTS))


def _ratio(amount: float, base: float) -> float:
    return amount / base if base else 0.0


def _cost(price: float | None, num_tokens: int) -> float | None:
    return None if price is None or not num_tokens else price / num_tokens * 1e6


#: The percentiles of `Spread`, in its order, between its minimum and its maximum.
_PERCENTS = (50, 90, 95, 99, 0, 100)
