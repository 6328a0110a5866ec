"""The arrivals of requests over simulated time.

Owns the two kinds of load, and the window in which requests and tokens count. A request counts if it was sent in the
window, and is followed to its end; tokens and steps count by the moment at which they were done. Nothing is sent after
the window. Never knows what becomes of a request.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from trident_tools.simulation.workload import SimulatedRequest, Workload


@dataclass
class CountingWindow:
    """The window from `begin` to `end`, in seconds of the simulated clock; the end may not be known yet."""

    begin: float
    end: float = math.inf

    def __contains__(self, moment: float) -> bool:
        return self.begin <= moment < self.end

    def overlap(self, begin: float, end: float) -> float:
        """Return the seconds of a span that lie in the window."""
        return max(0.0, min(end, self.end) - max(begin, self.begin))


class Arrival(NamedTuple):
    """A request that was sent at `sent_at` and reaches a core at `at`."""

    at: float
    sent_at: float
    request: SimulatedRequest


class Arrivals(Protocol):
    """A load as it happens."""

    @property
    def window(self) -> CountingWindow:
        """The window in which requests and tokens count."""
        ...

    @property
    def next(self) -> float:
        """When the next known request reaches a core; infinity if none will."""
        ...

    def take(self) -> Arrival:
        """Return the request that arrives next, and go on to the one after it."""
        ...

    def ended(self, arrival: Arrival, now: float, *, refused: bool = False) -> None:
        """Note that a request has its answer, or was refused."""
        ...

    def share_done(self, now: float) -> float:
        """Return the share of the load that has been sent, from 0 to 1."""
        ...


class PoissonArrivals:
    """A Poisson process of requests, whatever becomes of them; requests before the end of the ramp do not count.

    With a given number of requests, the window ends where the next one would have been sent.

    Args:
        workload: the requests.
        rate: requests per second.
    """

    def __init__(self, workload: Workload, rate: float) -> None:
        self._workload = workload
        self._requests = workload.requests()
        self._gaps = workload.gaps(rate)
        self._num_left = math.inf if workload.num_requests is None else workload.num_requests
        self._num_counted = 0
        self.window = CountingWindow(workload.ramp)
        if workload.duration is not None:
            self.window.end = workload.ramp + workload.duration
        self._sent_at = 0.0
        self._advance()

    def _advance(self) -> None:
        self._sent_at += next(self._gaps)
        if self._num_left == 0:
            self.window.end = self._sent_at
        elif self._sent_at in self.window:
            self._num_left -= 1
            self._num_counted += 1

    @property
    def next(self) -> float:
        """When the next known request reaches a core; infinity if none will."""
        return self._sent_at + self._workload.overhead if self._sent_at < self.window.end else math.inf

    def take(self) -> Arrival:
        """Return the request that arrives next, and go on to the one after it."""
        arrival = Arrival(self.next, self._sent_at, next(self._requests))
        self._advance()
        return arrival

    def ended(self, arrival: Arrival, now: float, *, refused: bool = False) -> None:
        """Do nothing, because no later request depends on this one."""

    def share_done(self, now: float) -> float:
        """Return the share of the load that has been sent, from 0 to 1."""
        if self._workload.num_requests is not None:
            return self._num_counted / self._workload.num_requests
        return min(1.0, now / self.window.end)


class UserArrivals:
    """A number of users who each send their next request when their last one has ended.

    They come one by one during the ramp. With a given number of requests, the window ends when that many requests that
    count have been answered. A user whose request was refused tries again after a second.

    Args:
        workload: the requests.
        num_users: number of users.
    """

    def __init__(self, workload: Workload, num_users: int) -> None:
        self._workload = workload
        self._requests = workload.requests()
        self._num_left = math.inf if workload.num_requests is None else workload.num_requests
        self.window = CountingWindow(workload.ramp)
        if workload.duration is not None:
            self.window.end = workload.ramp + workload.duration
        self._sends = [workload.ramp * user / num_users for user in range(num_users)]

    @property
    def next(self) -> float:
        """When the next known request reaches a core; infinity if none will."""
        if not self._sends or self._sends[0] >= self.window.end:
            return math.inf
        return self._sends[0] + self._workload.overhead

    def take(self) -> Arrival:
        """Return the request that arrives next, and go on to the one after it."""
        at = self.next
        return Arrival(at, heapq.heappop(self._sends), next(self._requests))

    def ended(self, arrival: Arrival, now: float, *, refused: bool = False) -> None:
        """Let the user of the request send the next one."""
        if arrival.sent_at in self.window:
            self._num_left -= 1
            if self._num_left == 0:
                self.window.end = now
        heapq.heappush(self._sends, now + _RETRY_SECONDS if refused else now)

    def share_done(self, now: float) -> float:
        """Return the share of the load that has been sent, from 0 to 1."""
        if self._workload.num_requests is not None:
            return 1 - max(0.0, self._num_left) / self._workload.num_requests
        return min(1.0, now / self.window.end)


_RETRY_SECONDS = 1.0
