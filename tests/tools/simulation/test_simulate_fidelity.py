"""The simulation does what the real core does, loses nothing, and its shortcuts change nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tools.simulation.simulations import (
    BLOCK_SIZE,
    WrittenLoad,
    deployment,
    run,
    step_seconds,
    workload,
)
from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import EngineSpec, StepBatch
from trident_backend.kv.cache import KVCache, make_kv_cache
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepTimeModel
from trident_ensemble.contract.manifest import KVKind
from trident_ensemble.contract.settings import BatchSchedulerPolicy
from trident_tools.load.loads import OpenLoop
from trident_tools.simulation import replica
from trident_tools.simulation.arrivals import Arrival
from trident_tools.simulation.figures import figures
from trident_tools.simulation.measurements import GapHistogram
from trident_tools.simulation.replica import Deployment
from trident_tools.simulation.runner import Scenario, run_scenarios
from trident_tools.simulation.simulator import Router, simulate
from trident_tools.simulation.workload import SimulatedRequest

POLICIES = list(BatchSchedulerPolicy)


def written_load(seed: int, count: int, rate: float) -> WrittenLoad:
    """Requests of all lengths at random times."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate, count)).tolist()
    lengths = zip(random.integers(1, 300, count).tolist(), random.integers(1, 80, count).tolist(), strict=True)
    return WrittenLoad(
        [
            Arrival(time, time, SimulatedRequest(number, num_input_tokens, num_output_tokens))
            for number, (time, (num_input_tokens, num_output_tokens)) in enumerate(zip(times, lengths, strict=True))
        ]
    )


class ClockedEngine:
    """An engine whose steps take what the tests' formula says, on a clock of its own."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.now = 0.0
        self._num_rows = 0

    def submit(self, batch: StepBatch) -> None:
        news = np.diff(batch.subsequence_begins)
        num_pairs = int((news * batch.past_lens + news * (news + 1) // 2).sum())
        self.now += step_seconds(len(batch.token_ids), num_pairs, len(batch.logit_rows))
        self._num_rows = len(batch.logit_rows)

    def collect(self) -> HostLogits:
        return HostLogits(np.zeros((self._num_rows, 4), np.float32), NumpyKernels())

    def close(self) -> None:
        """Nothing to free."""


def real_core_latencies(served: Deployment, arrivals: list[Arrival]) -> dict[int, float]:
    """The same requests through the real core's loop body, with prompts that share nothing."""
    engine = ClockedEngine(served.spec)
    core = EngineCore(engine, served.settings, lambda: engine.now)
    todo = list(arrivals)
    latencies: dict[int, float] = {}
    while len(latencies) < len(arrivals):
        while todo and todo[0].at <= engine.now:
            arrival = todo.pop(0)
            number, num_input_tokens, num_output_tokens = arrival.request
            prompt = [1000 + number] * num_input_tokens
            sequence = Sequence(
                number, prompt, num_input_tokens, num_output_tokens, SamplingParams(), frozenset(), arrival.at
            )
            core.scheduler.add(sequence, engine.now)
        if not core.step().output.chunks:
            engine.now = todo[0].at
        for sequence in core.scheduler.take_ended():
            latencies[sequence.sequence_id] = engine.now - sequence.arrived_at
    return latencies


@pytest.mark.slow
@pytest.mark.parametrize("target_itl_ms", [0, 9])
@pytest.mark.parametrize("policy", POLICIES)
def test_simulate_fidelity_every_request_takes_what_it_takes_in_the_real_core(
    policy: BatchSchedulerPolicy, target_itl_ms: int
) -> None:
    served = deployment(
        max_num_seqs=12, num_blocks=60, batch_scheduler_policy=policy, target_itl_ms=target_itl_ms, max_queue_size=500
    )
    load = written_load(seed=3, count=150, rate=30)
    expected = real_core_latencies(served, load.arrivals)
    measured = simulate(served, load, Router.FEWEST_OPEN, workload())
    assert (measured.num_preemptions > 0) == (policy is BatchSchedulerPolicy.MAX_UTILIZATION)
    assert load.latencies == pytest.approx(expected, rel=1e-9)


def test_simulate_fidelity_slots_are_those_of_the_real_core() -> None:
    spec = EngineSpec(0, 12, 256, 380, block_size=380, num_blocks=9, kv_kind=KVKind.SLOTS)
    served = replace(deployment(max_queue_size=500), spec=spec)
    load = written_load(seed=3, count=100, rate=30)
    expected = real_core_latencies(served, load.arrivals)
    simulate(served, load, Router.FEWEST_OPEN, workload())
    assert load.latencies == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_simulate_fidelity_every_request_is_answered_once_and_no_token_is_lost(policy: BatchSchedulerPolicy) -> None:
    served = deployment(max_num_seqs=8, num_blocks=40, num_replicas=2, batch_scheduler_policy=policy, max_queue_size=10)
    load = written_load(seed=4, count=400, rate=80)
    requests = {arrival.request.number: arrival.request for arrival in load.arrivals}
    measured = simulate(served, load, Router.FEWEST_OPEN, workload())
    assert load.answers == Counter(list(requests))
    assert 0 < measured.num_refused < measured.num_sent == 400
    assert measured.num_ended == measured.num_requests == len(load.latencies) == 400 - measured.num_refused
    assert measured.num_output_tokens == sum(requests[number].num_output_tokens for number in load.latencies)
    assert measured.num_input_tokens == sum(requests[number].num_input_tokens for number in load.latencies)
    assert int(measured.gaps.counts.sum()) + measured.num_ended == measured.num_output_tokens


def test_simulate_fidelity_what_cannot_fit_is_refused() -> None:
    served = deployment(num_blocks=10)
    measured = run(served, workload(str(9 * BLOCK_SIZE), "20", num_requests=5), num_users=2)
    assert measured.num_requests == 0
    assert measured.num_refused >= 5


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_simulate_fidelity_shortcuts_change_nothing(
    policy: BatchSchedulerPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = deployment(max_num_seqs=12, num_blocks=60, batch_scheduler_policy=policy)
    asked = workload("uniform:1:300", "uniform:1:80", num_requests=300)
    quick = run(served, asked, rate=25)
    made = {"times": 0, "caches": 0}

    def learning() -> StepTimeModel:
        made["times"] += 1
        return StepTimeModel()

    def reusing(spec: EngineSpec, **_: bool) -> KVCache:
        made["caches"] += 1
        return make_kv_cache(spec, reuse=True)

    def sharing(**fields: Any) -> Sequence:
        return Sequence(**{**fields, "reuse_cache": True})

    monkeypatch.setattr(replica, "UnreadStepTimes", learning)
    monkeypatch.setattr(replica, "make_kv_cache", reusing)
    monkeypatch.setattr(replica, "Sequence", sharing)
    assert run(served, asked, rate=25) == quick
    assert made == {"times": 1, "caches": 1}


def test_simulate_fidelity_a_seed_repeats_a_load_and_another_does_not() -> None:
    asked = workload("uniform:1:300", "normal:40:10")
    assert run(deployment(), asked, rate=30) == run(deployment(), asked, rate=30)
    other = run(deployment(), workload("uniform:1:300", "normal:40:10", seed=2), rate=30)
    assert other.request_latency != run(deployment(), asked, rate=30).request_latency


@pytest.mark.slow
def test_simulate_fidelity_replicas_that_take_turns_may_be_simulated_apart() -> None:
    asked = workload("uniform:1:300", "uniform:1:80", num_requests=200, ramp=1.0)
    served = deployment(num_replicas=3)
    together = figures(
        simulate(
            served, Scenario(served, asked, Router.ROUND_ROBIN, OpenLoop(60)).arrivals(), Router.ROUND_ROBIN, asked
        ),
        1.0,
    )
    scenarios = [Scenario(served, asked, Router.ROUND_ROBIN, OpenLoop(rate)) for rate in (60, 90)]
    apart = [figures(measured, 1.0) for _, measured in run_scenarios(scenarios, 2, lambda _: None)]
    assert apart[0].request_throughput == together.request_throughput
    assert apart[0].output_token_throughput == together.output_token_throughput
    assert apart[0].time_to_first_token.p99 == pytest.approx(together.time_to_first_token.p99)
    assert apart[0].utilization == pytest.approx(together.utilization)
    assert apart[0].cost_per_million_tokens == pytest.approx(together.cost_per_million_tokens)
    assert apart[1].request_throughput > apart[0].request_throughput


def test_simulate_fidelity_progress_goes_up_to_all() -> None:
    reached: list[float] = []
    scenarios = [
        Scenario(deployment(), workload(num_requests=400), Router.FEWEST_OPEN, OpenLoop(rate)) for rate in (20, 40)
    ]
    assert [place for place, _ in run_scenarios(scenarios, 1, reached.append)] == [0, 1]
    assert reached == sorted(reached)
    assert len(reached) > 4
    assert reached[-1] == 1


def test_simulate_fidelity_gaps_are_kept_to_half_a_percent() -> None:
    gaps = np.random.default_rng(5).lognormal(-4, 1, 100_000)
    histogram, half = GapHistogram(), GapHistogram()
    histogram.add(gaps[:50_000].tolist())
    half.add(gaps[50_000:].tolist())
    histogram.merge(half)
    for percent in (50, 90, 99):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(gaps, percent), rel=0.006)
    assert histogram.average == pytest.approx(gaps.mean())
