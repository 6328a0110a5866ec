"""The measurements of a simulation.

Owns the sums, the latencies of each request, and the histogram of gaps between tokens. They can be merged, so that
replicas may be simulated apart. Never turns a number into a figure for people.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trident_backend.metrics.records import RequestRecord
from trident_backend.sequences.steps import Advance
from trident_tools.simulation.arrivals import CountingWindow


@dataclass(frozen=True)
class CoreState:
    """The state of a core during a step.

    It has the step's beginning and tokens, the running and waiting sequences, and the share of KV blocks in use.
    """

    began: float
    num_tokens: int
    num_running: int
    num_waiting: int
    kv_share: float


class GapHistogram:
    """A histogram of the times between tokens of a stream, in bins of one percent."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(_NUM_BINS, np.int64)
        self._total = 0.0
        self._new: list[float] = []

    def add(self, gaps: list[float]) -> None:
        """Add gaps in seconds, all above 0."""
        self._new += gaps
        if len(self._new) >= _NUM_BUFFERED:
            self._flush()

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The count of each bin."""
        self._flush()
        return self._counts

    def _flush(self) -> None:
        gaps = np.array(self._new)
        places = np.log(np.maximum(gaps, _LEAST_GAP) / _LEAST_GAP) / math.log(_BIN_RATIO)
        self._counts += np.bincount(np.minimum(places.astype(np.int64), _NUM_BINS - 1), minlength=_NUM_BINS)
        self._total += float(gaps.sum())
        self._new.clear()

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds, to half a percent; 0 without gaps."""
        ranks = np.cumsum(self.counts)
        if not ranks[-1]:
            return 0.0
        place = int(np.searchsorted(ranks, max(1.0, ranks[-1] * percent / 100)))
        return float(_LEAST_GAP * _BIN_RATIO ** (place + 0.5))

    @property
    def average(self) -> float:
        """The mean in seconds; 0 without gaps."""
        num_gaps = int(self.counts.sum())
        return self._total / max(1, num_gaps)

    def merge(self, other: GapHistogram) -> None:
        """Add the gaps of another histogram."""
        self._counts += other.counts
        self._total += other._total


@dataclass
class Measurements:
    """The measurements of one load on one deployment, in seconds; the load's window says which requests count.

    Args:
        num_replicas: replicas that were simulated.
        window_seconds: length of the window.
        num_sent: all requests, counted or not.
        num_refused: requests that no core took.
        num_ended: requests that were served to their end.
        num_steps: steps in the window, in which everything below happened that does not concern requests.
        num_step_tokens: tokens computed in steps.
        num_input_tokens: tokens of prompts whose first output token came.
        num_output_tokens: tokens generated.
        num_requests: requests that ended.
        busy_seconds: time in steps, of all replicas.
        running_seconds: running sequences times seconds; likewise for waiting sequences and the share of KV blocks.
        kv_max: the largest share of a replica's KV blocks in use.
        first_token: the time to first token of each request that counts; likewise the other latencies.
        inter_token: the mean time between tokens of each request with at least two.
        num_prompt_tokens: prompt tokens of the requests that count.
        num_cached_tokens: prompt tokens of these that were found in the KV cache.
        num_preemptions: how often these requests were preempted.
        gaps: the times between successive tokens of a stream.
    """

    num_replicas: int
    window_seconds: float = 0.0
    num_sent: int = 0
    num_refused: int = 0
    num_ended: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_requests: int = 0
    busy_seconds: float = 0.0
    running_seconds: float = 0.0
    waiting_seconds: float = 0.0
    kv_seconds: float = 0.0
    kv_max: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    first_token: array[float] = field(default_factory=lambda: array("d"))
    inter_token: array[float] = field(default_factory=lambda: array("d"))
    latency: array[float] = field(default_factory=lambda: array("d"))
    queue: array[float] = field(default_factory=lambda: array("d"))
    gaps: GapHistogram = field(default_factory=GapHistogram)

    def add_step(self, window: CountingWindow, now: float, state: CoreState, advances: Iterable[Advance]) -> None:
        """Add a step of a replica that has ended.

        Args:
            window: the window in which steps count.
            now: when the step ended.
            state: the state of the core during the step.
            advances: the sequences that got tokens.
        """
        seconds = window.overlap(state.began, now)
        self.busy_seconds += seconds
        self.running_seconds += seconds * state.num_running
        self.waiting_seconds += seconds * state.num_waiting
        self.kv_seconds += seconds * state.kv_share
        if now not in window:
            return
        self.kv_max = max(self.kv_max, state.kv_share)
        self.num_steps += 1
        self.num_step_tokens += state.num_tokens
        gaps = []
        for sequence, num_advanced, waited in advances:
            self.num_output_tokens += num_advanced
            if waited is None:
                self.num_input_tokens += sequence.num_prompt_tokens
            else:
                gaps.append(waited)
        self.gaps.add(gaps)

    def add_request(
        self, window: CountingWindow, sent_at: float, overhead: float, now: float, record: RequestRecord
    ) -> None:
        """Add a request that has ended; `overhead` seconds of it were outside the core."""
        self.num_ended += 1
        self.num_requests += now in window
        if sent_at not in window:
            return
        assert record.queue_seconds is not None
        assert record.first_token_seconds is not None
        self.queue.append(record.queue_seconds)
        self.first_token.append(record.first_token_seconds + overhead)
        self.latency.append(record.latency_seconds + overhead)
        if record.num_output_tokens > 1:
            streamed = record.latency_seconds - record.first_token_seconds
            self.inter_token.append(streamed / (record.num_output_tokens - 1))
        self.num_prompt_tokens += record.num_input_tokens
        self.num_cached_tokens += record.num_cached_tokens
        self.num_preemptions += record.num_preemptions

    def merge(self, other: Measurements) -> None:
        """Add the measurements of other replicas under the same load, in the same window."""
        assert self.window_seconds == other.window_seconds
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.kv_max = max(self.kv_max, other.kv_max)
        self.gaps.merge(other.gaps)


_SUMMED = (
    "num_replicas", "num_sent", "num_refused", "num_ended", "num_steps", "num_step_tokens", "num_input_tokens",
    "num_output_tokens", "num_requests", "busy_seconds", "running_seconds", "waiting_seconds", "kv_seconds",
    "num_prompt_tokens", "num_cached_tokens", "num_preemptions", "first_token", "inter_token", "latency", "queue",
)  # fmt: skip
_LEAST_GAP = 1e-6
_BIN_RATIO = 1.01
#: Enough bins for gaps of up to three hours.
_NUM_BINS = 2320
_NUM_BUFFERED = 65536
