"""Simulations whose outcome is known: from the steps' arithmetic, or from the laws of queues."""

from __future__ import annotations

import pytest

from tests.tools.simulation.simulations import BLOCK_SIZE, PER_PAIR, PER_TOKEN, deployment, run, step_seconds, workload
from trident_backend.sequences.step_time import StepTime
from trident_tools.simulation.simulator import Router

pytestmark = pytest.mark.slow


def test_simulate_laws_a_lone_request_takes_what_its_steps_take() -> None:
    # 40 prompt tokens in one step, then 19 steps of one token, each of which sees all tokens before it.
    prompt = step_seconds(40, 40 * 41 // 2, 1)
    streamed = sum(step_seconds(1, 40 + place, 1) for place in range(1, 20))

    alone = run(deployment(), workload(num_requests=5), num_users=1)

    assert alone.num_requests == 5
    assert alone.time_to_first_token.avg == pytest.approx(1000 * prompt, rel=1e-9)
    assert alone.time_to_first_token.p99 == pytest.approx(1000 * prompt, rel=1e-9)
    assert alone.inter_token_latency.avg == pytest.approx(1000 * streamed / 19, rel=1e-9)
    assert alone.request_latency.avg == pytest.approx(1000 * (prompt + streamed), rel=1e-9)
    assert alone.utilization == pytest.approx(1)
    assert alone.output_token_throughput == pytest.approx(20 / (prompt + streamed), rel=1e-9)


def test_simulate_laws_a_long_prompt_takes_several_steps() -> None:
    first, second = step_seconds(256, 256 * 257 // 2, 0), step_seconds(44, 44 * 256 + 44 * 45 // 2, 1)
    alone = run(deployment(), workload("300", num_requests=3), num_users=1)
    assert alone.time_to_first_token.avg == pytest.approx(1000 * (first + second), rel=1e-9)


def test_simulate_laws_overhead_comes_on_top_of_the_first_token_alone() -> None:
    without = run(deployment(), workload(num_requests=5), num_users=1)
    slower = run(deployment(), workload(num_requests=5, overhead=0.25), num_users=1)
    assert slower.time_to_first_token.avg == pytest.approx(without.time_to_first_token.avg + 250, rel=1e-9)
    assert slower.request_latency.avg == pytest.approx(without.request_latency.avg + 250, rel=1e-9)
    assert slower.inter_token_latency.avg == pytest.approx(without.inter_token_latency.avg, rel=1e-9)
    # The user waits for it as well.
    assert slower.request_throughput == pytest.approx(1000 / slower.request_latency.avg, rel=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_simulate_laws_one_server_of_constant_service_queues_as_pollaczek_and_khinchine_say(load: float) -> None:
    service = 0.01
    served = deployment(max_num_seqs=1, step_time=StepTime(service, 0, 0, 0))
    measured = run(served, workload("8", "1", num_requests=30000), rate=load / service)
    wait = 1000 * load * service / (2 * (1 - load))
    assert measured.queue_time.avg == pytest.approx(wait, rel=0.05)
    assert measured.time_to_first_token.avg == pytest.approx(wait + 1000 * service, rel=0.03)
    assert measured.utilization == pytest.approx(load, rel=0.02)
    # Little: the mean queue is the rate times the mean wait.
    assert measured.num_waiting == pytest.approx(load / service * measured.queue_time.avg / 1000, rel=0.01)


@pytest.mark.parametrize("num_users", [3, 20, 60])
def test_simulate_laws_users_without_pause_obey_the_response_time_law(num_users: int) -> None:
    asked = workload("uniform:10:60", "uniform:5:40", num_requests=600, ramp=3.0)
    measured = run(deployment(), asked, num_users=num_users)
    assert measured.request_throughput * measured.request_latency.avg / 1000 == pytest.approx(num_users, rel=0.05)


@pytest.mark.parametrize("router", list(Router))
def test_simulate_laws_two_replicas_serve_twice_the_rate_of_one(router: Router) -> None:
    asked = workload("uniform:10:60", "uniform:5:40", num_requests=3000)
    one = run(deployment(), asked, rate=40)
    two = run(
        deployment(num_replicas=2), workload("uniform:10:60", "uniform:5:40", num_requests=6000), rate=80, router=router
    )
    assert two.output_token_throughput == pytest.approx(2 * one.output_token_throughput, rel=0.04)
    assert two.inter_token_latency.avg == pytest.approx(one.inter_token_latency.avg, rel=0.03)
    assert two.time_to_first_token.avg == pytest.approx(one.time_to_first_token.avg, rel=0.05)
    assert two.num_running == pytest.approx(one.num_running, rel=0.05)


def test_simulate_laws_a_request_goes_where_the_fewest_are_open() -> None:
    # Long and short requests in turn: taking turns, one replica would have all the long ones.
    asked = workload("8", "lognormal:60:120", num_requests=2000)
    fewest = run(deployment(num_replicas=3, max_num_seqs=4), asked, rate=20, router=Router.FEWEST_OPEN)
    in_turn = run(deployment(num_replicas=3, max_num_seqs=4), asked, rate=20, router=Router.ROUND_ROBIN)
    assert fewest.queue_time.avg < in_turn.queue_time.avg / 2


def test_simulate_laws_a_shared_prefix_is_computed_once() -> None:
    prefix, own = 4 * BLOCK_SIZE, 40
    asked = workload(str(own), shared_prefix=prefix, num_requests=10)
    shared = run(deployment(), asked, num_users=1)
    apart = run(deployment(enable_kv_cache_reuse=False), asked, num_users=1)
    saved = 1000 * (PER_TOKEN * prefix + PER_PAIR * prefix * (prefix + 1) / 2)
    assert apart.time_to_first_token.p50 - shared.time_to_first_token.p50 == pytest.approx(saved, rel=1e-9)
    # The first of the ten finds nothing.
    assert shared.prefix_hit_rate == pytest.approx(0.9 * prefix / (prefix + own))
    assert apart.prefix_hit_rate == 0
    assert shared.inter_token_latency.p50 == pytest.approx(apart.inter_token_latency.p50)


def test_simulate_laws_the_latency_budget_keeps_tokens_close() -> None:
    asked = workload("200", "40", num_requests=400)
    free = run(deployment(), asked, rate=25)
    bound = run(deployment(target_itl_ms=8), asked, rate=25)
    assert free.inter_chunk_latency.p99 > 9
    assert bound.inter_chunk_latency.p99 < 8 * 1.05
    assert bound.time_to_first_token.avg > free.time_to_first_token.avg


def test_simulate_laws_throughput_stops_at_what_full_steps_yield() -> None:
    served = deployment(max_num_seqs=8, step_time=StepTime(0.01, 0, 0, 0), max_queue_size=50)
    measured = run(served, workload("8", "10", num_requests=4000), rate=500)
    # Eight tokens each 10 ms, and a prompt takes no step of its own.
    assert measured.output_token_throughput == pytest.approx(800, rel=0.02)
    assert measured.num_running == pytest.approx(8, rel=0.01)
    assert measured.num_refused / 4000 == pytest.approx(1 - 80 / 500, rel=0.03)


def test_simulate_laws_only_what_was_sent_after_the_ramp_counts() -> None:
    measured = run(deployment(), workload(num_requests=None, duration=10.0, ramp=5.0), rate=20)
    assert measured.window_seconds == 10
    assert 150 < measured.num_requests < 250
    assert measured.request_throughput == pytest.approx(20, rel=0.25)
