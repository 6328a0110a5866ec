"""The progress of a stage while it runs.

Owns the figures of the last seconds, and the line that they make. Never prints and never waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from trident_tools.load.client_records import ClientStream


@dataclass(frozen=True)
class StageProgress:
    """The last seconds of a stage.

    Args:
        phase: ramp, measuring or finishing.
        elapsed: seconds since the stage began.
        num_users: users that have been spawned; None in an open loop.
        num_running: requests that have been sent and have not ended.
        num_done: requests that have ended well since the stage began.
        num_errors: requests that have failed since the stage began.
        first_token: seconds to the first token, of the streams whose first token came in the last seconds.
        token: seconds per token so far, of the streams that received tokens in the last seconds.
        tokens_per_s: tokens that arrived per second; a chunk counts as one where the protocol does not say.
    """

    phase: str
    elapsed: float
    num_users: int | None
    num_running: int
    num_done: int
    num_errors: int
    first_token: tuple[float, ...]
    token: tuple[float, ...]
    tokens_per_s: float

    def line(self) -> str:
        """Return the progress as one line of text."""
        users = "" if self.num_users is None else f"{self.num_users} users  "
        return (
            f"{self.elapsed:5.0f} s  {self.phase:<9}  {users}{self.num_running} running  {self.num_done} done  "
            f"{self.num_errors} errors  TTFT {_pair(self.first_token)}  ITL {_pair(self.token)}  "
            f"{self.tokens_per_s:.0f} tokens/s"
        )


def recent(
    streams: Iterable[ClientStream], since: float, now: float
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Return `first_token`, `token` and `tokens_per_s` of `StageProgress` for what streams received after `since`."""
    first_token, token, num_tokens = [], [], 0
    for stream in streams:
        times, counts = stream.chunk_times, stream.chunk_tokens or [1] * len(stream.chunk_times)
        if not times or times[-1] <= since:
            continue
        if times[0] > since:
            first_token.append(times[0] - stream.scheduled_at)
        num_later = sum(counts) - counts[0]
        if num_later:
            token.append((times[-1] - times[0]) / num_later)
        num_tokens += sum(count for moment, count in zip(times, counts, strict=False) if moment > since)
    return tuple(first_token), tuple(token), num_tokens / max(now - since, 1e-9)


def all_streams(running: Iterable[ClientStream], ended: Iterable[tuple[ClientStream, bool]]) -> Iterable[ClientStream]:
    """Return the streams that run and those that have ended lately."""
    return chain(running, (stream for stream, _ in ended))


def _pair(seconds: tuple[float, ...]) -> str:
    """Return p50/p95 in milliseconds as text."""
    if not seconds:
        return "-"
    median, high = np.percentile(seconds, (50, 95)) * 1000
    return f"{_short(median)}/{_short(high)} ms"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
