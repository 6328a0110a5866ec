"""What a server's metrics page says that a gateway goes by.

Owns the names of those metrics. Never asks for the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_GAUGES = re.compile(
    rb"^nv_trt_llm_(?:request|kv_cache_block|general)_metrics\{([^}]*)\} (\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)$",
    re.MULTILINE,
)
_LABELS = re.compile(rb'(\w+)="([^"]*)"')
_KINDS = {
    (b"request_type", b"active"): "num_active",
    (b"request_type", b"waiting"): "num_waiting",
    (b"request_type", b"max"): "max_active",
    (b"kv_cache_block_type", b"fraction"): "kv_fraction",
    (b"general_type", b"iteration_counter"): "num_steps",
}
#: Those that count things; the others say how full something is, or can be.
_SUMS = frozenset({"num_active", "num_waiting", "num_steps"})


@dataclass(frozen=True)
class CoreFigures:
    """The load of one core.

    Args:
        num_active: requests that it has, those that wait among them.
        num_waiting: requests that wait.
        kv_fraction: of its KV blocks that are in use, from 0 to 1.
        num_steps: that it has made since its start.
        max_active: requests that it computes at the same time, at most.
    """

    num_active: float = 0.0
    num_waiting: float = 0.0
    kv_fraction: float = 0.0
    num_steps: float = 0.0
    max_active: float = 0.0

    @property
    def fullness(self) -> float:
        """How much of what it has is taken, from 0 to 1: of the KV cache, or of a queue of as many as it computes."""
        queue = self.num_waiting / self.max_active if self.max_active else 0.0
        return min(1.0, max(self.kv_fraction, queue))


@dataclass(frozen=True)
class MetricsPage:
    """The figures of each core of a server, by its model's name: of all its versions together.

    While one version takes the place of another both serve, and one that has ended leaves its last figures behind: no
    requests, no blocks, and the steps that it made.
    """

    cores: Mapping[str, CoreFigures]

    @property
    def num_steps(self) -> float:
        """Steps that all cores together have made."""
        return sum(core.num_steps for core in self.cores.values())


def read_page(page: bytes) -> MetricsPage:
    """Return what a page says; what is not there is as if it were zero."""
    cores: dict[str, dict[str, dict[str, float]]] = {}
    for labels, value in _GAUGES.findall(page):
        pairs = _LABELS.findall(labels)
        names = [_KINDS[pair] for pair in pairs if pair in _KINDS]
        told = {label: text.decode(errors="replace") for label, text in pairs}
        if names and b"model" in told:
            versions = cores.setdefault(told[b"model"], {})
            versions.setdefault(told.get(b"version", ""), {})[names[0]] = float(value)
    return MetricsPage({model: _together([*versions.values()]) for model, versions in cores.items()})


def _together(versions: Sequence[Mapping[str, float]]) -> CoreFigures:
    kinds = {kind for version in versions for kind in version}
    return CoreFigures(
        # Each version has a KV cache and a batch of its own, and a request finds room in one of them.
        **{kind: (sum if kind in _SUMS else max)(version.get(kind, 0.0) for version in versions) for kind in kinds}
    )
