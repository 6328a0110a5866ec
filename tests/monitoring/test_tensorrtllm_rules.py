"""Rules and the engine's panels work for a server with TensorRT-LLM's backend, which lacks our own metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.tensorrtllm_metrics import MODEL, serving_pages
from tests.monitoring.expressions import panel_expressions
from tests.monitoring.prometheus_server import Prometheus, prometheus
from tests.programs import needs

#: Panels for which that backend says nothing.
WITHOUT_SOURCE = {
    "Engine: Time between tokens", "Engine: Time in the queue", "Engine: Tokens", "Engine: Prefix hits",
    "Engine: How requests end", "Engine: Draft tokens",
}  # fmt: skip
WITHOUT_FAILURES = {
    "Engine: Triton's requests: {{model}} {{reason}}",
    "Engine: Preemptions: {{instance}} {{model}} preempted",
}


@pytest.mark.slow
@needs("prometheus", "prometheus")
def test_tensorrtllm_rules_and_panels_need_none_of_our_metrics(tmp_path: Path) -> None:
    with serving_pages(waiting=12, fraction=0.6) as target, prometheus(tmp_path, {"trident-server": target}) as running:
        running.until(lambda: len(running.query("rate(nv_inference_request_success[1m]) > 0")) == 1, "two scrapes")
        running.until(lambda: running.query("trident:saturation") != [], "the rules were evaluated")
        # 12 that wait for 8 places are more than 0.6 of the cache, which count as 0.75.
        assert running.number("trident:saturation") == 1.5
        check_rules(running)
        without = set()
        for one in panel_expressions():
            if one.name.startswith("Engine: ") and not running.query(one.promql):
                without.add(one.name)
        assert {name.rpartition(": ")[0] for name in without - WITHOUT_FAILURES} == WITHOUT_SOURCE
        [series] = running.query(f'nv_trt_llm_request_metrics{{model="{MODEL}", request_type="scheduled"}}')
        assert series["value"][1] == "6"
        between_steps = next(one.promql for one in panel_expressions() if one.name.startswith("Engine: Step time"))
        assert 0.02 < running.number(between_steps) < 2


def check_rules(running: Prometheus) -> None:
    rules = running.rules()
    running.until(lambda: all(rule["health"] != "unknown" for rule in running.rules()), "all rules were evaluated")
    assert [rule["name"] for rule in running.rules() if rule["health"] != "ok"] == []
    assert not any(rule["state"] == "firing" for rule in rules if rule["type"] == "alerting")
