"""Which deaths are failures, seen with ordinary processes in the place of stubs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trident_ensemble.draining import DrainNotice
from trident_ensemble.errors import ServerError
from trident_tools.server_process import ServerProcess
from trident_tools.stubs import StubWatch
from trident_tools.supervisor import Signals, Supervisor
from trident_tools.triton_log import last_errors
from trident_tools.triton_server import Listen
from trident_tools.triton_status import TritonStatus

#: Starts a "stub" for each instance named, says its process ids, and starts one more for each line it reads.
_SERVER = """
import subprocess, sys
def start(instance):
    words = ["/b/triton_python_backend_stub", "/models/core/1/model.py", "memory", instance, "DEFAULT"]
    print(subprocess.Popen(words, executable="/bin/sleep-alike").pid, flush=True)
"""


class Status(TritonStatus):
    """A server whose ready models the test decides."""

    def __init__(self) -> None:
        super().__init__(Listen("127.0.0.1", 1, 2, 3))
        self.ready: set[tuple[str, str]] | None = {("core", "1")}

    def is_ready(self) -> bool:
        return True

    def ready_models(self) -> set[tuple[str, str]]:
        if self.ready is None:
            raise OSError("no answer")
        return self.ready

    def num_active_requests(self) -> int:
        return 0


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A program that sleeps and looks like a stub."""
    path = tmp_path / "triton_python_backend_stub"
    path.symlink_to("/bin/sh")
    return path


@pytest.fixture
def server(tmp_path: Path, stub: Path) -> Iterator[ServerProcess]:
    """A "tritonserver" that starts one stub now and another whenever the file `again` appears."""
    wait = f"sleep 60 # {stub}"
    script = (
        "import subprocess, time, pathlib\n"
        f"again = pathlib.Path({str(tmp_path / 'again')!r})\n"
        f"words = [{str(stub)!r}, '-c', 'sleep 60; :', '/models/core/1/model.py', 'core_0_0', 'DEFAULT']\n"
        f"words = [{str(stub)!r}, '/models/core/1/model.py', 'memory', 'core_0_0', 'DEFAULT']\n"
    )
    del wait
    body = (
        "def start():\n"
        "    return subprocess.Popen(words, executable='/bin/cat', stdin=subprocess.PIPE)\n"
    )
    del body
    with (tmp_path / "log").open("wb") as log:
        process = ServerProcess([sys.executable, "-c", script], {}, log)
    yield process
    process.kill()
