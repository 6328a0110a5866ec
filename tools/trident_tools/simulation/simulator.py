"""The simulation of a load on replicas, event by event.

Owns the order of events and the choice of a replica. An event is a request that reaches a core, or a step that ends; at
equal times the step comes first. Never reads a clock, and never draws a random number beside those of the load.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from enum import Enum

from trident_tools.simulation.arrivals import Arrivals
from trident_tools.simulation.measurements import Measurements
from trident_tools.simulation.replica import Deployment, Replica
from trident_tools.simulation.workload import Workload


class Router(str, Enum):
    """The rule that chooses the replica for a request."""

    #: The replica with the fewest unanswered requests; equal ones take turns.
    FEWEST_OPEN = "fewest-open"
    #: Each replica in turn.
    ROUND_ROBIN = "round-robin"


def simulate(
    deployment: Deployment,
    arrivals: Arrivals,
    router: Router,
    workload: Workload,
    *,
    only: int | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Measurements:
    """Run until every request that was sent has its answer; return the measurements.

    Args:
        deployment: the deployment, with its number of replicas.
        arrivals: the load, which is used up.
        router: chooses the replica for a request.
        workload: the requests of the load.
        only: simulate this replica alone and leave out the requests of the others, which round robin under an open loop
            allows.
        on_progress: is called now and then with the share of the load that has been sent.
    """
    simulation = _Simulation(deployment, arrivals, router, workload, only)
    num_events = 0
    while simulation.advance():
        num_events += 1
        if num_events % _PROGRESS_EVERY == 0:
            on_progress(arrivals.share_done(simulation.now))
    simulation.measurements.window_seconds = arrivals.window.end - arrivals.window.begin
    return simulation.measurements


class _Simulation:
    def __init__(
        self, deployment: Deployment, arrivals: Arrivals, router: Router, workload: Workload, only: int | None
    ) -> None:
        self.measurements = Measurements(deployment.num_replicas if only is None else 1)
        self.now = 0.0
        self._arrivals = arrivals
        self._router = router
        self._only = only
        self._turn = 0
        self._replicas = [
            Replica(deployment, workload, arrivals.window, self.measurements) for _ in range(deployment.num_replicas)
        ]
        self._ends: list[tuple[float, int]] = []

    def advance(self) -> bool:
        """Process the next event; return False when there is none."""
        arrives_at = self._arrivals.next
        if self._ends and self._ends[0][0] <= arrives_at:
            self.now, index = heapq.heappop(self._ends)
            for arrival in self._replicas[index].end(self.now):
                self._arrivals.ended(arrival, self.now)
            self._begin(index)
            return True
        if arrives_at == math.inf:
            return False
        self.now = arrives_at
        arrival = self._arrivals.take()
        index = self._choose()
        if self._only in (None, index):
            self.measurements.num_sent += 1
            if not self._replicas[index].offer(arrival):
                self.measurements.num_refused += 1
                self._arrivals.ended(arrival, self.now, refused=True)
            elif not self._replicas[index].busy:
                self._begin(index)
        return True

    def _begin(self, index: int) -> None:
        ends_at = self._replicas[index].begin(self.now)
        if ends_at is not None:
            heapq.heappush(self._ends, (ends_at, index))

    def _choose(self) -> int:
        turn, num_replicas = self._turn, len(self._replicas)
        if self._router is Router.FEWEST_OPEN and num_replicas > 1:
            in_turn = [(turn + offset) % num_replicas for offset in range(num_replicas)]
            turn = min(in_turn, key=lambda index: self._replicas[index].num_open)
        self._turn = (turn + 1) % num_replicas
        return turn


_PROGRESS_EVERY = 512
