"""The page of metrics, read by Prometheus's own parser."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trident_gateway.observing.metrics import MAX_TENANTS, OTHER, Metrics
from trident_gateway.observing.request_log import RequestRecord


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the page's samples without the prefix, by name and labels."""
    return {
        (sample.name.removeprefix("trident_gateway_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def record(**fields: object) -> RequestRecord:
    made = RequestRecord(route="/v1/completions", model="demo", status=200, duration_s=0.5)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_metrics_count_what_a_request_was() -> None:
    metrics = Metrics(lambda: 3, lambda: True)
    metrics.count_request(record(tenant="a", num_input_tokens=7, num_cached_tokens=4, num_output_tokens=9, ttft_s=0.02))
    metrics.count_request(record(status=499, client_gone="stream"))
    metrics.count_request(record(side="canary", finish_reasons=("stop", "length", "stop")))
    metrics.count_refusal("requests")
    metrics.count_failure("traces")
    metrics.set_certificate_end(1e9)
    metrics.gaps_of("demo", "stable")(0.004)
    found = samples(metrics)
    labels = {"route": "/v1/completions", "model": "demo", "side": "stable"}
    assert found["requests_total", _labels(**labels, code="200")] == 1
    assert found["requests_total", _labels(**labels, code="499")] == 1
    assert found["requests_total", _labels(**{**labels, "side": "canary"}, code="200")] == 1
    assert found["finishes_total", _labels(model="demo", reason="stop", side="canary")] == 2
    assert found["finishes_total", _labels(model="demo", reason="length", side="canary")] == 1
    assert found["request_seconds_count", _labels(**labels)] == 2
    assert found["request_seconds_sum", _labels(**labels)] == 1.0
    assert found["ttft_seconds_count", _labels(model="demo", side="stable")] == 1
    assert found["itl_seconds_sum", _labels(model="demo", side="stable")] == 0.004
    for kind, number in (("input", 7), ("cached", 4), ("output", 9)):
        assert found["tokens_total", _labels(model="demo", tenant="a", kind=kind)] == number
    assert found["inflight", ()] == 3
    assert found["draining", ()] == 1
    assert found["client_gone_total", _labels(phase="stream")] == 1
    assert found["limit_refusals_total", _labels(kind="requests")] == 1
    assert found["failures_total", _labels(part="traces")] == 1
    assert found["certificate_end_seconds", ()] == 1e9


def _labels(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_metrics_histograms_have_each_value_in_the_buckets_above_it() -> None:
    metrics = Metrics()
    observe = metrics.gaps_of("m", "stable")
    values = (0.0005, 0.001, 0.0011, 0.3, 99.0)
    for value in values:
        observe(value)
    buckets = {
        float(dict(labels)["le"]): number
        for (name, labels), number in samples(metrics).items()
        if name == "itl_seconds_bucket"
    }
    assert math.inf in buckets
    for bound, number in buckets.items():
        assert number == sum(value <= bound for value in values)


def test_metrics_give_no_more_than_so_many_tenants_a_label() -> None:
    metrics = Metrics()
    for _ in range(2):
        for number in range(1000):
            metrics.count_request(record(tenant=f"tenant-{number}", num_input_tokens=1, num_output_tokens=2))
    tenants = {
        dict(labels)["tenant"]: number
        for (name, labels), number in samples(metrics).items()
        if name == "tokens_total" and dict(labels)["kind"] == "output"
    }
    assert len(tenants) == MAX_TENANTS + 1
    assert tenants["tenant-0"] == 4
    assert sum(tenants.values()) == 4000
    assert tenants[OTHER] == 4000 - 4 * MAX_TENANTS


def test_metrics_show_what_others_count() -> None:
    metrics = Metrics()
    metrics.add("counter", "picks_total", "Picks", ("server",), lambda: [(("a:1",), 5)])
    metrics.add("gauge", "up", "Is up", (), lambda: [((), True)])
    found = samples(metrics)
    assert found["picks_total", _labels(server="a:1")] == 5
    assert found["up", ()] == 1


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "ü"])
def test_metrics_labels_are_escaped(name: str) -> None:
    metrics = Metrics()
    metrics.count_request(record(model=name))
    labels = _labels(route="/v1/completions", model=name, code="200", side="stable")
    assert samples(metrics)["requests_total", labels] == 1
