"""The simulations of a command, run side by side where there are cores for it.

Owns the processes and the progress. Each load is a simulation of its own; replicas that take turns under an open loop
do not affect one another, so each of them is one too. Never lets the figures depend on the number of processes.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from trident_ensemble.contract.errors import TridentError
from trident_tools.load.loads import ClosedLoop, Load
from trident_tools.simulation.arrivals import Arrivals, PoissonArrivals, UserArrivals
from trident_tools.simulation.measurements import Measurements
from trident_tools.simulation.replica import Deployment
from trident_tools.simulation.simulator import Router, simulate
from trident_tools.simulation.workload import Workload


@dataclass(frozen=True)
class Scenario:
    """One load on one deployment.

    Args:
        deployment: the deployment that serves.
        workload: the requests.
        router: chooses the replica for a request.
        load: says when requests are sent.
    """

    deployment: Deployment
    workload: Workload
    router: Router
    load: Load

    def arrivals(self) -> Arrivals:
        """Return the arrivals of the load from its beginning."""
        if isinstance(self.load, ClosedLoop):
            return UserArrivals(self.workload, self.load.num_users)
        return PoissonArrivals(self.workload, self.load.rate)

    @property
    def parts(self) -> tuple[int | None, ...]:
        """The replicas to be simulated apart; None stands for all of them together."""
        if isinstance(self.load, ClosedLoop) or self.router is not Router.ROUND_ROBIN:
            return (None,)
        return tuple(range(self.deployment.num_replicas))


def run_scenarios(
    scenarios: list[Scenario], num_processes: int, on_progress: Callable[[float], None]
) -> Iterator[tuple[int, Measurements]]:
    """Simulate every scenario.

    Args:
        scenarios: any number of scenarios.
        num_processes: how many processes run side by side at most; with 1, everything happens in this process.
        on_progress: is called now and then with the share of the whole that is done, from 0 to 1.

    Yields:
        the index of a scenario and its measurements, in the order of the scenarios.
    """
    parts = [(index, part) for index, scenario in enumerate(scenarios) for part in scenario.parts]
    tasks = [(scenarios[index], part) for index, part in parts]
    measured = (
        _one_by_one(tasks, on_progress)
        if min(num_processes, len(tasks)) == 1
        else _side_by_side(tasks, num_processes, on_progress)
    )
    merged: Measurements | None = None
    for place, (index, _) in enumerate(parts):
        result = next(measured)
        if merged is None:
            merged = result
        else:
            merged.merge(result)
        if place + 1 == len(parts) or parts[place + 1][0] != index:
            yield index, merged
            merged = None


_Task = tuple[Scenario, int | None]


def _simulate(task: _Task, on_progress: Callable[[float], None]) -> Measurements:
    scenario, part = task
    arrivals, workload = scenario.arrivals(), scenario.workload
    return simulate(scenario.deployment, arrivals, scenario.router, workload, only=part, on_progress=on_progress)


def _one_by_one(tasks: list[_Task], on_progress: Callable[[float], None]) -> Iterator[Measurements]:
    for place, task in enumerate(tasks):

        def reached(share: float, place: int = place) -> None:
            on_progress((place + share) / len(tasks))

        measured = _simulate(task, reached)
        reached(1.0)
        yield measured


def _side_by_side(
    tasks: list[_Task], num_processes: int, on_progress: Callable[[float], None]
) -> Iterator[Measurements]:
    context = multiprocessing.get_context("spawn")
    shares = [0.0] * len(tasks)
    results: dict[int, Measurements] = {}
    todo = deque(range(len(tasks)))
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    try:
        for place in range(len(tasks)):
            while place not in results:
                while todo and len(running) < num_processes:
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(tasks[todo[0]], theirs), daemon=True)
                    process.start()
                    theirs.close()
                    running[ours] = todo.popleft(), process
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    worker_place, process = running[ready]
                    message = _receive(ready)
                    if isinstance(message, Measurements):
                        results[worker_place] = message
                        process.join()
                        del running[ready]
                    shares[worker_place] = 1.0 if isinstance(message, Measurements) else message
                on_progress(sum(shares) / len(tasks))
            yield results.pop(place)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _receive(connection: Connection) -> Measurements | float:
    try:
        message: Measurements | float = connection.recv()
    except EOFError:
        raise TridentError(
            "a process of the simulation died; it says why above, or memory ran out: try --processes 1"
        ) from None
    return message


def _work(task: _Task, results: Connection) -> None:
    """Run in a process of its own; send shares done, then the measurements."""
    # Ctrl-C goes to the whole group of processes; the first of them ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results.send(_simulate(task, results.send))
