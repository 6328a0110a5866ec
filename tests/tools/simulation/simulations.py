"""What the tests of the simulator share: small deployments, and a load that is written down."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from trident_backend.engine.protocol import EngineSpec
from trident_backend.sequences.step_time import StepTime
from trident_ensemble.contract.settings import CoreSettings
from trident_tools.load.distributions import parse_distribution
from trident_tools.load.loads import ClosedLoop, OpenLoop
from trident_tools.simulation.arrivals import Arrival, CountingWindow
from trident_tools.simulation.figures import SimulatedFigures, figures
from trident_tools.simulation.replica import Deployment
from trident_tools.simulation.runner import Scenario, run_scenarios
from trident_tools.simulation.simulator import Router
from trident_tools.simulation.step_cost import FittedCost
from trident_tools.simulation.workload import Workload

BASE, PER_TOKEN, PER_PAIR, PER_ROW = 5e-3, 2e-5, 3e-8, 1e-5
STEP_TIME = StepTime(BASE, PER_TOKEN, PER_PAIR, PER_ROW)
BLOCK_SIZE = 16


def step_seconds(num_tokens: int, num_pairs: int, num_rows: int) -> float:
    """What a step costs in these tests."""
    return BASE + PER_TOKEN * num_tokens + PER_PAIR * num_pairs + PER_ROW * num_rows


def deployment(
    *,
    max_num_seqs: int = 32,
    max_num_tokens: int = 256,
    num_blocks: int = 4096,
    num_replicas: int = 1,
    step_time: StepTime = STEP_TIME,
    **settings: Any,
) -> Deployment:
    """Replicas with room for everything, unless said otherwise."""
    spec = EngineSpec(0, max_num_seqs, max_num_tokens, num_blocks * BLOCK_SIZE, BLOCK_SIZE, num_blocks)
    return Deployment(spec, CoreSettings(**settings), FittedCost(step_time), num_replicas)


def workload(input_tokens: str = "40", output_tokens: str = "20", **changes: Any) -> Workload:
    """100 requests of fixed lengths, all of which count, unless said otherwise."""
    usual = Workload(
        input_tokens=parse_distribution(input_tokens),
        output_tokens=parse_distribution(output_tokens),
        shared_prefix=0,
        ramp=0.0,
        num_requests=100,
        duration=None,
        overhead=0.0,
        seed=1,
    )
    return replace(usual, **changes)


def run(
    served: Deployment,
    asked: Workload,
    *,
    router: Router = Router.FEWEST_OPEN,
    rate: float | None = None,
    num_users: int | None = None,
) -> SimulatedFigures:
    """The figures of one load, simulated in this process."""
    assert (rate is None) != (num_users is None)
    load = OpenLoop(rate) if rate is not None else ClosedLoop(num_users or 0)
    scenario = Scenario(served, asked, router, load)
    [(_, measured)] = run_scenarios([scenario], 1, lambda _: None)
    return figures(measured, None)


@dataclass
class WrittenLoad:
    """Arrivals at known times, all of which count; says how often each request was answered."""

    arrivals: list[Arrival]
    window: CountingWindow = field(default_factory=lambda: CountingWindow(0.0, 1e9))
    answers: Counter[int] = field(default_factory=Counter)
    latencies: dict[int, float] = field(default_factory=dict)

    @property
    def next(self) -> float:
        return self.arrivals[0].at if self.arrivals else float("inf")

    def take(self) -> Arrival:
        return self.arrivals.pop(0)

    def ended(self, arrival: Arrival, now: float, *, refused: bool = False) -> None:
        self.answers[arrival.request.number] += 1
        if not refused:
            self.latencies[arrival.request.number] = now - arrival.sent_at

    def share_done(self, now: float) -> float:
        return 0.0
