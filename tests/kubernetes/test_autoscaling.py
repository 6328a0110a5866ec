"""How many servers the autoscalers of the manifests ask for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kubernetes.autoscaling import Autoscaler, KedaTrigger, Sample, combined, proposal
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
