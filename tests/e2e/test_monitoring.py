"""Prometheus scrapes a real server and a real gateway under load: every rule and every panel has what it asks for."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.server import Server
from tests.gateway.clients.gateways import RunningGateway, gateway
from tests.monitoring.expressions import (
    TARGET_LABELS,
    Expression,
    grouping_labels,
    page_expressions,
    panel_expressions,
    rule_expressions,
    rules,
    selectors,
)
from tests.monitoring.prometheus_server import Prometheus, prometheus
from tests.programs import needs
from trident_gateway.settings import ServerAddress

pytestmark = needs("prometheus", "prometheus")

#: What is only there after a fault, and nothing is at fault here.
WITHOUT_DATA = {
    "Engine: Triton's requests: {{model}} {{reason}}",
    "Gateways, servers and rollouts: Retries and ejections: retry {{reason}}",
}


@pytest.fixture(scope="module")
def scraped(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen streams, plain answers, a refusal and a client that left, and still sees streams."""
    folder = tmp_path_factory.mktemp("monitoring")
    address = ServerAddress(f"http://{server.http}", f"http://{server.host}:{server.metrics_port}")
    is_over = threading.Event()
    with gateway(folder / "gateway", [address]) as running, ThreadPoolExecutor(5) as pool:
        jobs = {
            "trident-server": f"{server.host}:{server.metrics_port}",
            "trident-gateway": f"127.0.0.1:{running.private_port}",
        }
        with prometheus(folder / "prometheus", jobs) as scraping:
            model = json.loads(_ask(running, "/v1/models", None, running.key)[1])["data"][0]["id"]

            def keep_asking(number: int) -> None:
                while not is_over.is_set():
                    fields = {"model": model, "prompt": "shoal " * 40, "max_tokens": 60, "stream": number > 0}
                    assert _ask(running, "/v1/completions", fields, running.key)[0] == 200

            asking = [pool.submit(keep_asking, number) for number in range(4)]
            try:
                short = {"model": model, "prompt": "Once", "max_tokens": 2}
                statuses = [_ask(running, "/v1/completions", short, running.spent_key)[0] for _ in range(2)]
                assert statuses == [200, 429]
                _leave(running, {"model": model, "prompt": "Once", "max_tokens": 2000, "stream": True})
                # Rates need two scrapes of a series, and the slowest to come is that of the client that left.
                scraping.until(
                    lambda: scraping.query("rate(trident_gateway_client_gone_total[1m])") != [], "the hang-up is seen"
                )
                scraping.until(lambda: scraping.query("trident:ttft_missed:ratio_rate3d >= 0") != [], "rules have data")
                scraping.until(
                    lambda: all(rule["health"] != "unknown" for rule in scraping.rules()), "rules were evaluated"
                )
                yield scraping
            finally:
                is_over.set()
                for one in asking:
                    one.result(60)


def test_monitoring_rules_are_evaluated_without_an_error(scraped: Prometheus) -> None:
    assert {rule["name"]: rule["lastError"] for rule in scraped.rules() if rule["health"] != "ok"} == {}
    assert len(scraped.rules()) == len(rules())


def test_monitoring_no_alert_of_a_sound_deployment_is_on_its_way(scraped: Prometheus) -> None:
    active = {rule["name"]: rule["alerts"] for rule in scraped.rules() if rule["type"] == "alerting" and rule["alerts"]}
    assert active == {}


@pytest.mark.parametrize("each", panel_expressions(), ids=lambda each: each.name)
def test_monitoring_panels_have_data(each: Expression, scraped: Prometheus) -> None:
    series = scraped.query(each.promql)
    assert (series != []) == (each.name not in WITHOUT_DATA)


def test_monitoring_queries_of_the_page_have_data(scraped: Prometheus) -> None:
    without = [one.name for one in page_expressions() if not scraped.query(one.promql)]
    assert [name for name in without if not re.search(r"5\.\.|failures|certificate|rollout", name)] == []


@pytest.mark.parametrize("variable", ["namespace", "model", "core"])
def test_monitoring_panels_show_what_is_chosen_alone(variable: str, scraped: Prometheus) -> None:
    """A panel that uses a variable has nothing where the value is one that nothing has."""
    everything, elsewhere = panel_expressions(), panel_expressions(**{variable: "elsewhere"})
    changed = [chosen for one, chosen in zip(everything, elsewhere, strict=True) if one.promql != chosen.promql]
    assert len(changed) == len(everything) if variable == "namespace" else len(changed) > 10
    assert [one.name for one in changed if scraped.query(one.promql)] == []


def test_monitoring_rules_ask_for_metrics_of_engines_that_are_there(scraped: Prometheus) -> None:
    """Each selector on the engine's metrics takes a series, and each label that is grouped by is on one."""
    for each in [*rule_expressions(), *panel_expressions()]:
        metrics = {one.metric for one in selectors(each.promql)}
        if not any(metric.startswith("nv_") for metric in metrics):
            continue
        labels = set(TARGET_LABELS)
        for one in selectors(each.promql):
            matchers = ",".join(f'{label}{operator}"{value}"' for label, operator, value in one.matchers)
            series = scraped.query(f"{one.metric}{{{matchers}}}")
            assert series, f"{each.name}: {one}"
            labels |= {label for found in series for label in found["metric"]}
        assert grouping_labels(each.promql) <= labels, each.name


def test_monitoring_saturation_is_what_the_server_says(scraped: Prometheus) -> None:
    # Between two answers there may be nothing in the cache when Prometheus looks.
    scraped.until(lambda: 0 < scraped.number("trident:saturation") < 1, "some of the room is taken")
    share = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}'
    waiting = 'nv_trt_llm_request_metrics{request_type="waiting"}'
    now = f"max_over_time(trident:saturation[10s]) * 0.8 >= on (instance) 0.999 * min_over_time({share}[5s])"
    scraped.until(lambda: scraped.query(f"{waiting} == 0") != [] and scraped.query(now) != [], "both agree")


def _ask(running: RunningGateway, path: str, fields: dict[str, object] | None, key: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("GET" if fields is None else "POST", path, json.dumps(fields) if fields else None, headers)
    reply = connection.getresponse()
    answer = reply.status, reply.read()
    connection.close()
    return answer


def _leave(running: RunningGateway, fields: dict[str, object]) -> None:
    """Begin a stream and leave once it has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    headers = {"Authorization": f"Bearer {running.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(fields), headers)
    connection.getresponse().read(1)
    time.sleep(0)
    connection.sock.close() if connection.sock else None
    connection.close()
