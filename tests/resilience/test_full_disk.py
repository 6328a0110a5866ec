"""A disk that is full: no request fails by it, what is lost is counted, and it is over when there is room again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

from tests.fakes.deployment import Deployment, command, deploy, make_repository, wait_ready
from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run
from tests.gateway.process import GatewayProcess, completion
from tests.resilience.metrics import metric
from tests.resilience.small_disk import may_mount, small_disk

pytestmark = may_mount


def test_full_disk_loses_lines_of_the_request_log_and_no_request(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        log = disk.path / "requests.log"

        async def ask(gateway: GatewayProcess, count: int, name: str) -> None:
            for number in range(count):
                headers = {"x-request-id": f"{name}-{number}"}
                assert (await gateway.ask("/v1/completions", completion(max_tokens=1), headers)).status == 200

        async def test() -> None:
            options = ("--log-file", str(log), "--drain-delay", "0")
            async with FakeTriton() as fake, GatewayProcess(fake, options=options) as gateway:
                await ask(gateway, 20, "before")
                while log.read_bytes().count(b"\n") < 20:
                    await asyncio.sleep(0.01)
                disk.fill()
                await ask(gateway, 60, "full")
                while not await metric(gateway, "failures_total", part="request_log"):
                    await asyncio.sleep(0.01)
                assert (await gateway.ask("/ready", private=True)).status == 200
                disk.free()
                await ask(gateway, 20, "after")
                while b'"after-19"' not in log.read_bytes():
                    await asyncio.sleep(0.01)
                disk.fill()
                await ask(gateway, 20, "again")
                gateway.signal()
                assert await gateway.status() == 0
                assert b"Traceback" not in gateway.errors

        run(test)
        # The part of a line that was written when the disk was full stands alone.
        whole = [line for line in log.read_bytes().splitlines() if line.endswith(b"}")]
        ids = [json.loads(line)["request_id"] for line in whole]
        assert {f"before-{number}" for number in range(20)} <= set(ids)
        assert {f"after-{number}" for number in range(1, 20)} <= set(ids)


def test_full_disk_of_the_log_of_tritonserver_costs_no_request(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        options = ("--log-file", disk.path / "log")
        with deploy(make_repository(tmp_path / "repository"), *options) as deployment:
            wait_ready(deployment)
            disk.fill()
            for _ in range(3):
                assert generate(deployment, "x") == "x"
            disk.free()
            assert generate(deployment, "y") == "y"
            disk.fill()
            deployment.process.send_signal(signal.SIGTERM)
            assert deployment.wait(60) == 0, deployment.text
            assert "Traceback" not in deployment.text


def test_full_disk_for_temporary_files_is_named_by_serve(tmp_path: Path) -> None:
    """One that is full already is not taken by Python; this one becomes full."""
    with small_disk(tmp_path / "disk") as disk:
        repository = make_repository(tmp_path / "repository")
        done = subprocess.run(
            command("serve", "--repository", repository, "--no-openai"),
            env={**os.environ, "TMPDIR": str(disk.path)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert str(disk.path) in done.stderr
    assert "Traceback" not in done.stderr


def generate(deployment: Deployment, text: str) -> str:
    """The answer of the models of a deployment, which is the prompt; of one letter, as it is not streamed."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployment.http_port}/v2/models/ensemble/generate",
        json.dumps({"text_input": text}).encode(),
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: str = json.loads(reply.read())["text_output"]
    return answer
