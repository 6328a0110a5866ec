"""The core's metrics at Triton's metrics port.

Owns the names and labels of its gauges (those of TensorRT-LLM's backend, so that existing dashboards work) and where
each value comes from; sums and distributions are in `histograms`. Never imports a metrics library: `Instruments` makes
the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from trident_backend.engine.protocol import EngineSpec
from trident_backend.metrics.histograms import RecordHistograms
from trident_backend.metrics.instruments import Gauge, Instruments, Labels
from trident_backend.metrics.loop_stats import LoopStats
from trident_backend.metrics.records import RequestRecord, StepRecord


class _View(NamedTuple):
    """The core at one time.

    Args:
        stats: of the loop.
        spec: the engine's limits.
        num_context_tokens: tokens of prompts in its last step; 0 once it is idle.
    """

    stats: LoopStats
    spec: EngineSpec
    num_context_tokens: int


def _num_scheduled(view: _View) -> int:
    return view.stats.num_running - view.stats.num_paused


def _num_generating(view: _View) -> int:
    return max(0, _num_scheduled(view) - view.stats.num_context)


def _coefficient(name: str) -> Callable[[_View], float]:
    return lambda view: getattr(view.stats.step_time, name, 0.0)


_REQUESTS = ("nv_trt_llm_request_metrics", "requests in the core", "request_type")
_BLOCKS = ("nv_trt_llm_kv_cache_block_metrics", "blocks of the KV cache", "kv_cache_block_type")
_BATCHER = ("nv_trt_llm_inflight_batcher_metrics", "in-flight batching", "inflight_batcher_specific_metric")
_GENERAL = ("nv_trt_llm_general_metrics", "the core's loop", "general_type")
_STEP_TIME = (
    "nv_llm_step_time_model",
    "seconds that a step takes, and each of its tokens, pairs of query and key, and rows of logits; 0 until learned",
    "coefficient",
)

_SOURCES: tuple[tuple[tuple[str, str, str], str, Callable[[_View], float]], ...] = (
    (_REQUESTS, "max", lambda view: view.spec.max_num_seqs),
    (_REQUESTS, "scheduled", _num_scheduled),
    (_REQUESTS, "context", lambda view: view.stats.num_context),
    (_REQUESTS, "waiting", lambda view: view.stats.num_waiting),
    (_BLOCKS, "max", lambda view: view.spec.num_blocks),
    (_BLOCKS, "free", lambda view: view.stats.num_free_blocks),
    (_BLOCKS, "used", lambda view: view.stats.num_used_blocks),
    (_BLOCKS, "tokens_per", lambda view: view.spec.block_size),
    (_BLOCKS, "reused", lambda view: view.stats.num_reused_blocks),
    (_BLOCKS, "fraction", lambda view: view.stats.num_used_blocks / view.spec.num_blocks),
    (_BATCHER, "total_context_tokens", lambda view: view.num_context_tokens),
    (_BATCHER, "generation_requests", _num_generating),
    (_BATCHER, "micro_batch_id", lambda _: 0),  # nothing is split into micro-batches
    (_BATCHER, "paused_requests", lambda view: view.stats.num_paused + view.stats.num_interrupted),
    (_GENERAL, "iteration_counter", lambda view: view.stats.num_steps),
    (_GENERAL, "timestamp", lambda _: time.time()),
    *((_STEP_TIME, name, _coefficient(name)) for name in ("base", "per_token", "per_pair", "per_row")),
)


class CoreMetrics:
    """All metrics of one core.

    Args:
        spec: the engine's limits.
        labels: of every metric: model and version.
        instruments: makes the metrics.
    """

    def __init__(self, spec: EngineSpec, labels: Labels, instruments: Instruments) -> None:
        self._spec = spec
        self._last: _View | None = None
        self._records = RecordHistograms(labels, instruments)
        family, description, label = _REQUESTS
        self._open = Gauge(instruments.gauge(family, description, {label: "active", **labels}))
        self._gauges = [
            (Gauge(instruments.gauge(family, description, {label: value, **labels})), source)
            for (family, description, label), value, source in _SOURCES
        ]

    def show(self, stats: LoopStats, records: list[StepRecord | RequestRecord]) -> None:
        """Set the gauges that have changed, and count the records since the last time."""
        self._records.add(records)
        self.show_open(stats.num_open)
        view = _View(stats, self._spec, self._num_context_tokens(stats, records))
        if view != self._last:
            self._last = view
            for gauge, source in self._gauges:
                gauge.set(source(view))

    def show_open(self, num_requests: int) -> None:
        """Set the gauge of open requests alone, if it has changed."""
        self._open.set(num_requests)

    def publish_sums(self) -> None:
        """Publish the sums and distributions."""
        self._records.publish()

    def _num_context_tokens(self, stats: LoopStats, records: list[StepRecord | RequestRecord]) -> int:
        for record in reversed(records):
            if isinstance(record, StepRecord):
                return record.num_context_tokens
        is_running = stats.num_running > stats.num_paused
        return self._last.num_context_tokens if self._last is not None and is_running else 0
