"""`trident serve --restart` with the real tritonserver: what dies is started again, on the same ports."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.fakes.deployment import Deployment, deploy, make_repository, wait_ready

#: A core that dies as Triton's own code does now and then, once.
_DYING_CORE = """
import os, pathlib, sys, time
time.sleep(1)  # as long as it takes to import an engine
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.touch()
    print("terminate called after throwing an instance of 'boost::interprocess::lock_exception'",
          "  what():  boost::interprocess::lock_exception", sep="\\n", file=sys.stderr, flush=True)
    os.abort()

class TritonPythonModel:
    def execute(self, requests):
        return [None] * len(requests)
"""


def until(condition: Callable[[], object], deployment: Deployment, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, deployment.text
        time.sleep(0.1)


def num_ready_again(deployment: Deployment) -> int:
    return deployment.text.count("Ready again after")


def answer(deployment: Deployment) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployment.http_port}/v2/models/ensemble/generate", json.dumps({"text_input": "x"}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        text: str = json.loads(reply.read())["text_output"]
    return text


def test_restart_a_model_or_a_server_that_is_killed_is_up_again_and_nothing_is_left(tmp_path: Path) -> None:
    with deploy(make_repository(tmp_path / "repository"), "--restart") as deployment:
        wait_ready(deployment)
        before, memory = set(deployment.group()), deployment.shared_memory()
        (victim,) = deployment.stubs("core")
        os.kill(victim, signal.SIGKILL)
        until(lambda: num_ready_again(deployment) == 1, deployment)
        assert f"model 'core', instance core_0: its process (pid {victim}) died (killed by SIGKILL)" in deployment.text
        assert "Starting it again in 1 s." in deployment.text
        assert answer(deployment) == "x"
        assert not before & set(deployment.group())
        assert not any(path.exists() for path in memory)

        memory = deployment.shared_memory()
        server = next(pid for pid in deployment.group() if pid not in deployment.stubs(""))
        os.kill(server, signal.SIGKILL)
        until(lambda: num_ready_again(deployment) == 2, deployment)
        assert f"tritonserver died (killed by SIGKILL); it was pid {server}" in deployment.text
        assert "Starting it again in 2 s." in deployment.text
        assert answer(deployment) == "x"
        assert not any(path.exists() for path in memory)

        os.kill(deployment.stubs("postprocessing")[0], signal.SIGKILL)
        until(lambda: "Starting it again in 4 s." in deployment.text, deployment)
        deployment.process.send_signal(signal.SIGTERM)
        assert deployment.wait(60) == 0
        assert num_ready_again(deployment) == 2, "it is not started again"
        assert not deployment.group()
        # The logs of deaths are kept, though the end was in order.
        assert list(tmp_path.glob("tritonserver-*.log"))


def test_restart_a_start_that_fails_by_a_lock_in_shared_memory_is_tried_once_more(tmp_path: Path) -> None:
    core = _DYING_CORE.format(mark=str(tmp_path / "mark"))
    with deploy(make_repository(tmp_path / "repository", {"core": core}), "--no-restart") as deployment:
        wait_ready(deployment)
        # Triton itself would wait for the model without a limit.
        assert re.search(r"model 'core', .* died while loading \(killed by SIGABRT\)", deployment.text)
        assert "what(): boost::interprocess::lock_exception" in deployment.text
        assert "Starting it once more in 1 s." in deployment.text
        deployment.process.send_signal(signal.SIGTERM)
        assert deployment.wait(60) == 0
