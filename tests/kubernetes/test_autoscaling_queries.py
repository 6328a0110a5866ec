"""The queries of the ScaledObject, asked of a real Prometheus that scrapes pages like those of servers and gateways."""

from __future__ import annotations

import json
import math
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.child_processes import tied
from tests.kubernetes.autoscaling import total_saturation
from tests.kubernetes.rendering import KUBERNETES, ROOT, named
from tests.ports import free_ports
from tests.programs import find, needs

pytestmark = [
    needs("kubectl", "Kubernetes' own packages, which have it as kubectl"),
    needs("prometheus", "Debian's prometheus"),
    pytest.mark.slow,
]
LIMIT_S = 60
MAX_BATCH = 8


def server_page(waiting: float, fraction: float) -> str:
    """What a server with two cores publishes, one of them idle."""
    return "".join(
        f'nv_trt_llm_request_metrics{{model="{model}",version="1",request_type="waiting"}} {queue}\n'
        f'nv_trt_llm_request_metrics{{model="{model}",version="1",request_type="max"}} {MAX_BATCH}\n'
        f'nv_trt_llm_kv_cache_block_metrics{{model="{model}",version="1",kv_cache_block_type="fraction"}} {blocks}\n'
        for model, queue, blocks in (("core", waiting, fraction), ("small_core", 0, 0))
    )


class Pods:
    """The pages of pods by their names; one that has no page does not answer."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        pods = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pods.pages.get(self.path.removeprefix("/"))
                self.send_response(503 if page is None else 200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@contextmanager
def prometheus(folder: Path, pods: Pods, names: dict[str, str]) -> Iterator[str]:
    """A Prometheus with the rules of docker/monitoring that scrapes pods as a PodMonitor makes it; yields its URL.

    Args:
        folder: for its configuration and its data.
        pods: which answer.
        names: of the pods, and of the container whose port is scraped.
    """
    target = f"127.0.0.1:{pods.server.server_address[1]}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "docker/monitoring/rules/*.yml")],
        "scrape_configs": [
            {
                "job_name": f"trident/{name}",
                "metrics_path": f"/{name}",
                "static_configs": [
                    {
                        "targets": [target],
                        "labels": {"namespace": "trident", "pod": name, "container": container, "instance": name},
                    }
                ],
            }
            for name, container in names.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    program = find("prometheus")
    assert program is not None
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(tied(command))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(LIMIT_S)


def ask(url: str, query: str) -> list[float]:
    """The values of a query, as KEDA's scaler reads them."""
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as reply:
        answer = json.loads(reply.read())
    assert answer["data"]["resultType"] == "vector"
    return [float(entry["value"][1]) for entry in answer["data"]["result"]]


def adapted(kind: str, group: str) -> str:
    """The query that prometheus-adapter makes of its first rule of a kind for pods of our namespace."""
    rules = yaml.safe_load((KUBERNETES / "examples/prometheus-adapter.yaml").read_text())["rules"]
    rule = rules[kind][0]
    query: str = rule["metricsQuery"]
    for word, meaning in (
        ("Series", rule["seriesQuery"].partition("{")[0]),
        ("LabelMatchers", 'namespace="trident"'),
        ("GroupBy", group),
    ):
        query = query.replace(f"<<.{word}>>", meaning)
    return query


def wait_for(url: str, query: str, expected: list[float]) -> None:
    """Wait until a query has some values."""
    end = time.monotonic() + LIMIT_S
    found: object = None
    while time.monotonic() < end:
        try:
            found = ask(url, query)
        except (urllib.error.URLError, ConnectionError) as error:
            found = error
        else:
            if len(found) == len(expected) and all(map(math.isclose, found, expected)):
                return
        time.sleep(0.1)
    pytest.fail(f"{query}: is {found}, not {expected}")


def test_autoscaling_queries_have_the_figures_that_the_design_asks_for(tmp_path: Path) -> None:
    saturation, inflight = (
        trigger["metadata"]["query"] for trigger in named("keda", "ScaledObject", "trident")["spec"]["triggers"]
    )
    pods = Pods()
    threading.Thread(target=pods.server.serve_forever, daemon=True).start()
    first, second, third, starting = (f"trident-7c9f8b6d5-{letter * 5}" for letter in "bcdf")
    gateway, canary = "trident-gateway-5d8f7b9c4-ggggg", "trident-canary-7c9f8b6d5-bbbbb"
    names = {**dict.fromkeys((first, second, third, starting, canary), "triton"), gateway: "gateway"}
    with pods.server, prometheus(tmp_path, pods, names) as url:
        # Nothing is known: no value, which with ignoreNullValues "false" is an error and not zero.
        wait_for(url, 'count(up{container="triton"})', [5])
        assert ask(url, saturation) == ask(url, inflight) == []

        # The queue counts for one server, the KV cache for the others; a pod that starts counts for nothing.
        pods.pages = {
            first: server_page(waiting=16, fraction=0.4),
            second: server_page(waiting=0, fraction=0.8),
            third: server_page(waiting=2, fraction=0.2),
            gateway: "trident_gateway_inflight 12\n",
        }
        known = {first: 2.0, second: 1.0, third: 0.25}
        scraped = {first, second, third, starting}
        wait_for(url, saturation, total_saturation(known, known, scraped))
        wait_for(url, inflight, [12 / MAX_BATCH])
        # The same for Kubernetes' own autoscaler, by prometheus-adapter: of each pod, and of all.
        assert sorted(ask(url, adapted("custom", "pod"))) == [0.25, 1, 2]
        assert ask(url, adapted("external", "namespace")) == [12 / MAX_BATCH]

        # What another Deployment of the namespace has is not this one's load.
        pods.pages[canary] = server_page(waiting=80, fraction=0.4) + "trident_gateway_inflight 100\n"
        wait_for(url, f'trident:saturation{{pod="{canary}"}}', [10])
        assert ask(url, saturation) == [3.25]
        assert ask(url, inflight) == [12 / MAX_BATCH]

        # A pod whose figures are lost counts with its last ones, neither as an idle nor as an average one.
        del pods.pages[first], pods.pages[third]
        wait_for(url, f'count(trident:saturation{{pod!="{canary}"}})', [1])
        assert ask(url, saturation) == total_saturation({second: 1.0}, known, scraped) == [3.25]
        pods.pages[first] = server_page(waiting=4, fraction=0)
        wait_for(url, saturation, total_saturation(known, {**known, first: 0.5}, scraped))

        # Without any figure there is no value again, long before Prometheus forgets the last ones.
        pods.pages.clear()
        wait_for(url, saturation, [])
        wait_for(url, inflight, [])
        pods.server.shutdown()
