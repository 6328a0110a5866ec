"""Sums and distributions of the records of steps and requests, for Triton's metrics port.

Owns the names of these metrics, their buckets, and what of a record goes where. Never reads the core itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trident_backend.metrics.instruments import BulkHistogram, Counter, Histogram, Instruments, Labels
from trident_backend.metrics.records import RequestRecord, StepRecord
from trident_backend.sequences.sequence import FinishReason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 150.0)
#: As in TensorRT-LLM's backend.
SEQUENCE_TOKENS = (10.0, 50.0, 100.0, 500.0, 1000.0)
STEP_TOKENS = tuple(2.0**power for power in range(14))
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
PREEMPTIONS = (0.0, 1.0, 2.0, 5.0, 10.0)

#: A histogram of requests: its name, its description, its buckets, and a request's value, None if it has none.
_RequestHistogram = tuple[str, str, tuple[float, ...], Callable[[RequestRecord], float | None]]


def _hit_rate(record: RequestRecord) -> float | None:
    return None if record.queue_seconds is None else record.num_cached_tokens / record.num_input_tokens


def _acceptance(record: RequestRecord) -> float | None:
    return record.num_accepted_tokens / record.num_draft_tokens if record.num_draft_tokens else None


_REQUEST_HISTOGRAMS: tuple[_RequestHistogram, ...] = (
    ("nv_llm_input_token_len", "tokens of a prompt", SEQUENCE_TOKENS, lambda record: record.num_input_tokens),
    ("nv_llm_output_token_len", "tokens of an output", SEQUENCE_TOKENS, lambda record: record.num_output_tokens),
    (
        "nv_llm_time_to_first_token_seconds",
        "from a request's arrival in the core until its first token",
        SECONDS,
        lambda record: record.first_token_seconds,
    ),
    (
        "nv_llm_queue_time_seconds",
        "from a request's arrival in the core until it first runs",
        SECONDS,
        lambda record: record.queue_seconds,
    ),
    (
        "nv_llm_request_latency_seconds",
        "from a request's arrival in the core until its end",
        SECONDS,
        lambda record: record.latency_seconds,
    ),
    ("nv_llm_prefix_hit_rate", "share of a prompt found in the KV cache", SHARES, _hit_rate),
    (
        "nv_llm_preemptions",
        "how often a request lost its room in the KV cache",
        PREEMPTIONS,
        lambda record: record.num_preemptions,
    ),
    ("nv_llm_draft_acceptance_rate", "share of a request's draft tokens that were accepted", SHARES, _acceptance),
)

_REQUEST_COUNTERS: tuple[tuple[str, str, Callable[[RequestRecord], float]], ...] = (
    ("nv_llm_input_tokens_total", "tokens of prompts", lambda record: record.num_input_tokens),
    ("nv_llm_cached_input_tokens_total", "tokens found in the KV cache", lambda record: record.num_cached_tokens),
    ("nv_llm_output_tokens_total", "tokens generated", lambda record: record.num_output_tokens),
    ("nv_llm_draft_tokens_total", "draft tokens computed", lambda record: record.num_draft_tokens),
    (
        "nv_llm_accepted_draft_tokens_total",
        "draft tokens that were accepted",
        lambda record: record.num_accepted_tokens,
    ),
)


class RecordHistograms:
    """Sums and distributions. A request counts when it has ended; in distributions, only if it was served to its end. A
    request for several answers counts as so many.

    Args:
        labels: of every metric.
        instruments: makes the metrics.
    """

    def __init__(self, labels: Labels, instruments: Instruments) -> None:
        self._request_histograms = [
            (Histogram(instruments.histogram(family, description, labels, bounds)), value)
            for family, description, bounds, value in _REQUEST_HISTOGRAMS
        ]
        self._request_counters = [
            (Counter(instruments.counter(family, description, labels)), value)
            for family, description, value in _REQUEST_COUNTERS
        ]
        self._requests = {
            reason: Counter(
                instruments.counter(
                    "nv_llm_requests_total", "requests ended", {"finish_reason": reason.value, **labels}
                )
            )
            for reason in FinishReason
        }
        self._preemptions = Counter(
            instruments.counter("nv_llm_preemptions_total", "times a request lost its room in the KV cache", labels)
        )

        def bulk(family: str, description: str, bounds: tuple[float, ...]) -> BulkHistogram:
            return BulkHistogram(instruments, family, description, labels, bounds)

        self._step_time = bulk("nv_llm_step_time_seconds", "duration of a step of the engine", SECONDS)
        self._step_tokens = bulk("nv_llm_step_tokens", "tokens that a step computes", STEP_TOKENS)
        self._gaps = bulk("nv_llm_inter_token_latency_seconds", "between a request's tokens", SECONDS)
        self._all: tuple[Histogram | BulkHistogram | Counter, ...] = (
            *(histogram for histogram, _ in self._request_histograms),
            *(counter for counter, _ in self._request_counters),
            *self._requests.values(),
            self._preemptions,
            self._step_time,
            self._step_tokens,
            self._gaps,
        )

    def add(self, records: Iterable[StepRecord | RequestRecord]) -> None:
        """Count these records; the next `publish` shows them."""
        for record in records:
            if isinstance(record, StepRecord):
                self._add_step(record)
            else:
                self._add_request(record)

    def publish(self) -> None:
        """Publish all that was added."""
        for metric in self._all:
            metric.publish()

    def _add_step(self, record: StepRecord) -> None:
        self._step_time.observe(record.seconds)
        self._step_tokens.observe(record.num_tokens)
        self._preemptions.add(record.num_preempted)
        for seconds, count in record.gaps:
            self._gaps.observe(seconds, count)

    def _add_request(self, record: RequestRecord) -> None:
        self._requests[record.finish_reason].add(1)
        # Neither a request that never ran nor one that was cut short says how long requests take, or how long they are.
        if record.queue_seconds is not None:
            for counter, amount in self._request_counters:
                counter.add(amount(record))
        if record.finish_reason not in _WHOLE:
            return
        for histogram, value in self._request_histograms:
            observed = value(record)
            if observed is not None:
                histogram.observe(observed)


_WHOLE = (FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH)
