"""One machine by one command: everything comes up locked down, answers whoever has a key, and goes down cleanly."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.composition import Composition, composed, new_key
from tests.containers.daemon import Docker, compose_command
from tests.containers.images import Images
from tests.containers.running import until, wait_healthy
from tests.programs import needs

pytestmark = [
    pytest.mark.skipif(compose_command() is None, reason="Docker Compose is missing: it comes with docker-compose"),
    needs("prometheus", "Debian's prometheus"),
]
SERVICES = ("triton", "gateway", "redis", "prometheus")


@pytest.fixture(scope="module")
def composition(
    docker: Docker, images: Images, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composition]:
    """What `docker compose up` brings."""
    with composed(docker, images, models, tmp_path_factory.mktemp("secrets")) as up:
        yield up


def ask(url: str, key: str | None, **fields: Any) -> tuple[int, bytes]:
    """Ask for a completion; return the status and the answer."""
    headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    data = json.dumps({"model": "trident-demo", "prompt": "Once", "max_tokens": 8, **fields}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/v1/completions", data, headers), timeout=60
        ) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_compose_answers_whoever_has_a_key_and_takes_new_ones_while_it_runs(composition: Composition) -> None:
    wait_healthy(composition.docker, composition.container("gateway"))
    status, answer = ask(composition.url(), composition.key, stream=True)
    assert (status, answer.endswith(b"data: [DONE]\n\n")) == (200, True)
    assert ask(composition.url(), None)[0] == 401
    added = new_key(composition.keys)
    until(lambda: ask(composition.url(), added)[0] == 200, "a key that was added is taken")


def test_compose_counts_limits_in_the_store(composition: Composition) -> None:
    wait_healthy(composition.docker, composition.container("gateway"))
    assert ask(composition.url(), composition.key)[0] == 200
    redis = composition.container("redis")
    assert int(composition.docker("exec", redis, "redis-cli", "dbsize")) > 0
    assert composition.docker("exec", redis, "redis-cli", "config", "get", "appendonly").split()[-1] == "yes"


def test_compose_scrapes_every_server_and_loads_the_rules(composition: Composition) -> None:
    wait_healthy(composition.docker, composition.container("gateway"))
    get = "import urllib.request as r; print(r.urlopen('http://prometheus:9090/api/v1/{}', timeout=10).read().decode())"

    def up() -> dict[str, str]:
        told = json.loads(composition.python("gateway", get.format("targets?state=active")))
        return {target["labels"]["job"]: target["health"] for target in told["data"]["activeTargets"]}

    until(lambda: up() == {"trident-gateway": "up", "trident-triton": "up"}, "both are scraped")
    groups = json.loads(composition.python("gateway", get.format("rules")))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 5
    until(
        lambda: all(
            rule["health"] == "ok"
            for group in json.loads(composition.python("gateway", get.format("rules")))["data"]["groups"]
            for rule in group["rules"]
        ),
        "every rule has been evaluated",
    )


def test_compose_publishes_the_gateway_alone_and_locks_everything_down(composition: Composition) -> None:
    for service in SERVICES:
        found = composition.docker.inspect(composition.container(service))
        host = found["HostConfig"]
        ports = {port for port, places in found["NetworkSettings"]["Ports"].items() if places}
        assert ports == ({"8080/tcp"} if service == "gateway" else set()), service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["Memory"] > 0, service
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}, service
        assert found["Config"]["User"] not in ("", "root", "0"), service
        assert not found["State"]["OOMKilled"], service


def test_compose_down_ends_everything_cleanly(composition: Composition) -> None:
    """The last test of this module: what it stops does not come back."""
    wait_healthy(composition.docker, composition.container("gateway"))
    composition("stop", timeout_s=200)
    states = {service: composition.docker.inspect(composition.container(service))["State"] for service in SERVICES}
    assert {service: state["ExitCode"] for service, state in states.items()} == dict.fromkeys(SERVICES, 0)
    assert states["gateway"]["FinishedAt"] < states["triton"]["FinishedAt"]
