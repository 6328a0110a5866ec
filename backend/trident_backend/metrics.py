"""What the core shows at Triton's metrics port.

Owns the names and labels (those of TensorRT-LLM's backend, so that existing dashboards work) and where each value comes
from. Knows no metrics library: values go to whatever `gauge` made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from trident_backend.engine.protocol import EngineSpec
from trident_backend.loop import LoopStats

#: Makes a gauge of a family: `gauge(family, description, labels)` gives a function that sets it.
GaugeFactory = Callable[[str, str, Mapping[str, str]], Callable[[float], None]]
Source = Callable[[LoopStats, EngineSpec], float]

_REQUESTS = ("nv_trt_llm_request_metrics", "requests in the core", "request_type")
_BLOCKS = ("nv_trt_llm_kv_cache_block_metrics", "blocks of the KV cache", "kv_cache_block_type")
_BATCHER = ("nv_trt_llm_inflight_batcher_metrics", "in-flight batching", "inflight_batcher_specific_metric")
_GENERAL = ("nv_trt_llm_general_metrics", "the core's loop", "general_type")

_SOURCES: tuple[tuple[tuple[str, str, str], str, Source], ...] = (
    (_REQUESTS, "active", lambda stats, _: stats.num_open),
    (_REQUESTS, "max", lambda _, spec: spec.max_num_seqs),
    (_REQUESTS, "scheduled", lambda stats, _: stats.num_running - stats.num_paused),
    (_REQUESTS, "context", lambda stats, _: stats.num_context),
    (_REQUESTS, "waiting", lambda stats, _: stats.num_waiting),
    (_BLOCKS, "max", lambda _, spec: spec.num_blocks),
    (_BLOCKS, "free", lambda stats, _: stats.num_free_blocks),
    (_BLOCKS, "used", lambda stats, _: stats.num_used_blocks),
    (_BLOCKS, "tokens_per", lambda _, spec: spec.block_size),
    (_BLOCKS, "fraction", lambda stats, spec: stats.num_used_blocks / spec.num_blocks),
    (_BATCHER, "generation_requests", lambda stats, _: stats.num_running - stats.num_context),
    (_BATCHER, "paused_requests", lambda stats, _: stats.num_paused),
    (_GENERAL, "iteration_counter", lambda stats, _: stats.num_steps),
    (_GENERAL, "timestamp", lambda _stats, _spec: time.time()),
)


class CoreMetrics:
    """The core's gauges.

    Args:
        spec: the engine's limits.
        labels: of every metric: model and version.
        gauge: makes the gauges.
    """

    def __init__(self, spec: EngineSpec, labels: Mapping[str, str], gauge: GaugeFactory) -> None:
        self._spec = spec
        self._last: LoopStats | None = None
        self._gauges = [
            (gauge(family, description, {label: value, **labels}), source)
            for (family, description, label), value, source in _SOURCES
        ]

    def publish(self, stats: LoopStats) -> None:
        """Set every gauge, if anything has changed since the last time."""
        if stats != self._last:
            self._last = stats
            for set_gauge, source in self._gauges:
                set_gauge(source(stats, self._spec))
