"""The metrics of a rollout.

Owns their names, and where they can be read: at a port while the command runs, or in a file for node_exporter.
Never counts a request: the gateways do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trident_ensemble.contract.errors import ServerError

#: Why a rollout is undone: gates, what else is seen, and what others do.
REASONS = (
    "errors", "refusals", "gone", "ttft", "itl", "finish", "ejections", "not_ready", "unclear", "too_few_requests",
    "unreadable", "weight_not_shown", "not_written", "changed_by_others", "failed",
    "trial", "other_digest", "interrupted", "asked",
)  # fmt: skip


class RolloutMetrics(Collector):
    """The metrics of one command.

    Args:
        undone: reason -> rollouts that were undone before.
        textfile: where the metrics are written after each change; None for nowhere.
    """

    def __init__(self, undone: Mapping[str, int], textfile: Path | None = None) -> None:
        self.undone = Counter(undone)
        self._stage = 0
        self._weight = 0.0
        self._textfile = textfile
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield GaugeMetricFamily(
            "trident_rollout_stage", "Stage that the rollout is in, from 1; 0 for none", self._stage
        )
        yield GaugeMetricFamily("trident_rollout_weight", "Percent of callers that the canary has", self._weight)
        text = "When the rollout was last watched, in seconds since 1970"
        yield GaugeMetricFamily("trident_rollout_watched_timestamp_seconds", text, time.time())
        undone = CounterMetricFamily("trident_rollout_undone", "Rollouts that were undone", labels=("reason",))
        for reason in REASONS:
            undone.add_metric((reason,), self.undone[reason])
        yield undone

    def serve(self, host: str, port: int) -> None:
        """Show them at a port for as long as this process runs.

        Raises:
            ServerError: the port cannot be used.
        """
        try:
            start_http_server(port, host, self._registry)
        except OSError as error:
            raise ServerError(f"--metrics-port {port}: {error.strerror or error}") from None

    def show(self, stage: int, weight: float) -> None:
        """Take a new state.

        Args:
            stage: from 1; 0 for none.
            weight: of the canary.

        Raises:
            ServerError: the file cannot be written.
        """
        self._stage, self._weight = stage, weight
        if self._textfile is None:
            return
        try:
            write_to_textfile(str(self._textfile), self._registry)
        except OSError as error:
            raise ServerError(f"--textfile {self._textfile}: cannot be written: {error.strerror or error}") from None
