"""How many servers the autoscalers of the manifests ask for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kubernetes.autoscaling import Autoscaler, KedaTrigger, Sample, combined, proposal, total_saturation
from tests.kubernetes.rendering import named, objects
from tests.programs import needs

pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")
EACH_S = 15


def hpa() -> dict[str, Any]:
    """The specification of the HorizontalPodAutoscaler."""
    spec: dict[str, Any] = named("hpa", "HorizontalPodAutoscaler", "trident")["spec"]
    return spec


def keda() -> dict[str, Any]:
    """The specification of the ScaledObject."""
    spec: dict[str, Any] = named("keda", "ScaledObject", "trident")["spec"]
    return spec


def autoscaler(replicas: int) -> Autoscaler:
    """The one of the manifests, with some replicas."""
    spec = hpa()
    return Autoscaler(spec["minReplicas"], spec["maxReplicas"], spec["behavior"], replicas)


def test_autoscalers_are_one_with_two_ways_to_the_figures() -> None:
    spec = keda()
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa()["behavior"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (hpa()["minReplicas"], hpa()["maxReplicas"]) == (2, 10)
    assert spec["scaleTargetRef"] == hpa()["scaleTargetRef"]
    assert not objects("hpa", "ScaledObject")
    assert not objects("keda", "HorizontalPodAutoscaler")
    assert all(trigger["metadata"]["ignoreNullValues"] == "false" for trigger in spec["triggers"])


def test_autoscaler_of_kubernetes_has_metrics_of_pods_and_of_all() -> None:
    first, second = hpa()["metrics"]
    assert first["pods"]["metric"]["name"] == "trident_saturation"
    assert first["pods"]["target"] == second["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert second["external"]["metric"]["name"] == "trident_inflight_batches"


def test_autoscaler_doubles_each_minute_under_load() -> None:
    scaler = autoscaler(2)
    found = [scaler.step(now, [Sample(1.0, total=40.0)]) for now in range(0, 241, EACH_S)]
    assert (found[0], found[3], found[4], found[8]) == (4, 4, 8, 10)
    assert found[-1] == 10


def test_autoscaler_gives_up_one_server_in_five_minutes_after_ten_quiet_ones() -> None:
    scaler = autoscaler(6)
    scaler.step(0, [Sample(1.0, total=6.0)])
    found = {now: scaler.step(now, [Sample(1.0, total=0.5)]) for now in range(EACH_S, 3001, EACH_S)}
    first = min(now for now, count in found.items() if count == 5)
    assert first == 600
    assert found[first + 285] == 5
    assert found[first + 300] == 4
    assert found[3000] == 2


def test_autoscaler_stays_where_the_load_is_about_the_target() -> None:
    scaler = autoscaler(4)
    assert {scaler.step(now, [Sample(1.0, total=3.7 + now % 2 * 0.6)]) for now in range(0, 3600, EACH_S)} == {4}


@given(
    totals=st.lists(st.none() | st.floats(0, 40), min_size=1, max_size=80),
    by_pod=st.lists(st.floats(0, 3), max_size=10),
    replicas=st.integers(2, 10),
)
def test_autoscaler_never_goes_down_while_a_metric_is_missing(
    totals: list[float | None], by_pod: list[float], replicas: int
) -> None:
    scaler = autoscaler(replicas)
    for step, total in enumerate(totals):
        before = scaler.replicas
        values = {str(pod): value for pod, value in enumerate(by_pod[:before])}
        after = scaler.step(step * EACH_S, [Sample(1.0, by_pod=values), Sample(1.0, total=total)])
        assert 2 <= after <= 10
        if total is None or not values:
            assert after >= before


@given(known=st.integers(0, 9), idle=st.floats(0, 0.8))
def test_autoscaler_takes_pods_without_figures_for_full_before_it_goes_down(known: int, idle: float) -> None:
    wanted = combined(10, [Sample(1.0, by_pod={str(pod): idle for pod in range(known)})])
    assert wanted >= 10 - known


triggers = st.lists(st.just([]) | st.lists(st.floats(0, 40), min_size=1, max_size=1), min_size=1, max_size=120)


def keda_history(spec: dict[str, Any], results: list[list[float]], replicas: int) -> list[int]:
    """How many servers there are after each step, if both queries of the ScaledObject have some results."""
    read = [KedaTrigger(trigger, spec["fallback"]) for trigger in spec["triggers"]]
    scaler = autoscaler(replicas)
    return [
        scaler.step(step * EACH_S, [one.sample(result, scaler.replicas) for one in read])
        for step, result in enumerate(results)
    ]


@given(results=triggers, replicas=st.integers(2, 10))
def test_keda_never_goes_down_while_prometheus_has_no_figure(results: list[list[float]], replicas: int) -> None:
    before = replicas
    for result, after in zip(results, keda_history(keda(), results, replicas), strict=True):
        assert result or after >= before
        before = after


def test_keda_would_go_down_if_missing_figures_counted_as_zero() -> None:
    spec = copy.deepcopy(keda())
    hour: list[list[float]] = [[] for _ in range(3600 // EACH_S)]
    assert keda_history(spec, hour, 8)[-1] == 8
    for trigger in spec["triggers"]:
        trigger["metadata"]["ignoreNullValues"] = "true"
    assert keda_history(spec, hour, 8)[-1] == 2


Query = Callable[[Mapping[str, float], Mapping[str, float], list[str]], list[float]]
START_S = 600


def average_times_pods(known: Mapping[str, float], _: Mapping[str, float], pods: list[str]) -> list[float]:
    """What a query would have that takes a pod without a figure for an average one."""
    return [sum(known.values()) / len(known) * len(pods)] if known else []


def counts_under_load(query: Query, load: float, replicas: int, *, is_rollout: bool = False) -> list[int]:
    """How many servers there are through an hour of a constant load, which the servers that are ready share.

    Args:
        query: over the figures of pods.
        load: saturation of all servers together.
        replicas: ready ones at first; further ones take ten minutes to start.
        is_rollout: one pod more than the replicas is starting all the while.
    """
    scaler, (trigger, _) = autoscaler(replicas), keda()["triggers"]
    read = KedaTrigger(trigger, keda()["fallback"])
    ready_at = dict.fromkeys(map(str, range(replicas)), 0)
    last: dict[str, float] = {}
    counts = []
    for now in range(0, 3600, EACH_S):
        ready = [pod for pod, at in ready_at.items() if at <= now]
        known = {pod: load / len(ready) for pod in ready}
        last.update(known)
        result = query(known, last, [*ready_at, *["surge"] * is_rollout])
        counts.append(scaler.step(now, [read.sample(result, scaler.replicas)], int(is_rollout)))
        for pod in range(len(ready_at), counts[-1]):
            ready_at[str(pod)] = now + START_S
    return counts


def test_keda_adds_what_a_load_asks_for_and_not_more_while_servers_start() -> None:
    assert set(counts_under_load(total_saturation, 3 * 1.05, 3)) == {3}
    assert set(counts_under_load(total_saturation, 3 * 1.2, 3)) == {4}
    assert counts_under_load(total_saturation, 2 * 4.0, 2)[:: 60 // EACH_S][:4] == [4, 8, 8, 8]
    # What it is held against: the pods that start bring further ones.
    assert max(counts_under_load(average_times_pods, 3 * 1.2, 3)) == 10


@given(load=st.floats(0.1, 9.5), replicas=st.integers(2, 10))
@settings(max_examples=50, deadline=None)
def test_keda_ends_with_servers_that_carry_the_load_and_hardly_more(load: float, replicas: int) -> None:
    counts = counts_under_load(total_saturation, load, replicas)
    assert load / counts[-1] <= 1.1
    assert max(counts) <= max(replicas, load + 1)


def test_keda_adds_no_server_for_the_pod_that_a_rollout_has_more() -> None:
    for load in (2.1, 2.5, 2.85, 3.0):
        assert set(counts_under_load(total_saturation, load, 3, is_rollout=True)) == {3}
    assert max(counts_under_load(average_times_pods, 2.85, 3, is_rollout=True)) == 10


figures = st.dictionaries(st.sampled_from("abcdefghij"), st.floats(0, 5), min_size=2)


@given(last=figures, missing=st.sets(st.sampled_from("abcdefghij")), starting=st.sets(st.sampled_from("klmnop")))
def test_keda_counts_lost_figures_as_they_were_and_starting_pods_not_at_all(
    last: dict[str, float], missing: set[str], starting: set[str]
) -> None:
    known = {pod: value for pod, value in last.items() if pod not in missing}
    found = total_saturation(known, last, {*last, *starting})
    assert found == (total_saturation(last, last, last.keys()) if known else [])


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (Sample(1.0, total=4.39), 4),  # within a tenth of the target
        (Sample(1.0, total=4.5), 5),
        (Sample(1.0, total=0.0), 0),
        (Sample(2.0, total=10.0), 5),
        (Sample(1.0), None),
        (Sample(1.0, by_pod={"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0}), 8),
        (Sample(1.0, by_pod={"a": 3.0}), 4),  # the other three may be idle
        (Sample(1.0, by_pod={"a": 0.0}), 3),  # the other three may be full
        (Sample(1.0, by_pod={}), None),
    ],
)
def test_autoscaler_arithmetic_is_that_of_kubernetes(sample: Sample, expected: int | None) -> None:
    assert proposal(4, sample) == expected


def test_autoscaler_compares_external_metrics_with_all_pods_that_there_are() -> None:
    # GetExternalPerPodMetricReplicas of Kubernetes takes the replicas of the status, a rollout's pod among them.
    assert proposal(3, Sample(1.0, total=3.8), surge=1) == 4
    assert proposal(3, Sample(1.0, total=3.0), surge=1) == 3
