"""The metrics of the core at a server's metrics port, as prometheus_client reads them."""

from __future__ import annotations

import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import Server, until

LABELS = {"model": "core", "version": "1"}
#: Histograms that are published as the counters they consist of.
IN_BULK = ("nv_llm_inter_token_latency_seconds", "nv_llm_step_time_seconds", "nv_llm_step_tokens")


class Page:
    """The metrics of the core as a server shows them at one time."""

    def __init__(self, server: Server) -> None:
        with urllib.request.urlopen(f"http://{server.host}:{server.metrics_port}/metrics", timeout=60) as reply:
            self.text = reply.read().decode()
        self.kinds: dict[str, str] = {}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(self.text):
            self.kinds[family.name] = family.type
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """Of a series; the parser calls every counter `..._total`, also one that is a part of a histogram."""
        key = frozenset({**LABELS, **labels}.items())
        in_bulk = name.rpartition("_")[0] in IN_BULK
        return self.samples[f"{name}_total" if in_bulk else name, key]

    def more_than(self, before: Page, name: str) -> float:
        """By how much a series has grown since."""
        return self.value(name) - before.value(name)

    def buckets(self, family: str) -> dict[str, float]:
        """Cumulative counts by the buckets' bounds, rising."""
        bounds = [dict(labels)["le"] for name, labels in self.samples if name.startswith(f"{family}_bucket")]
        return {le: self.value(f"{family}_bucket", le=le) for le in sorted(bounds, key=float)}

    def requests(self, kind: str) -> float:
        return self.value("nv_trt_llm_request_metrics", request_type=kind)

    def blocks(self, kind: str) -> float:
        return self.value("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type=kind)

    def batcher(self, kind: str) -> float:
        return self.value("nv_trt_llm_inflight_batcher_metrics", inflight_batcher_specific_metric=kind)

    def ended(self, reason: str) -> float:
        return self.value("nv_llm_requests_total", finish_reason=reason)

    @property
    def num_steps(self) -> float:
        return self.value("nv_trt_llm_general_metrics", general_type="iteration_counter")


def settled_page(server: Server) -> Page:
    """The page once everything that has ended is on it."""
    until(lambda: Page(server).requests("active") == 0, 60, "all requests have ended")
    time.sleep(0.75)
    return Page(server)
