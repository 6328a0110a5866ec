"""The process of a server, tritonserver or the gateway, as a child of this one.

Owns its start and its end: it never outlives this process, however that ends, and what it has started itself never
outlives it. Never decides when to stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from trident_ensemble.contract.errors import ServerError

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.1
_PROC = Path("/proc")
#: Seconds in which the kernel ends killed processes; one that holds an engine has much memory to free.
_GONE_S = 20.0


class ServerProcess:
    """A running server, in a process group of its own, so that a terminal's Ctrl-C does not reach it.

    Args:
        command: the command line.
        environment: the whole environment.
        log: receives the output; None to write to the output of this process.

    Raises:
        ServerError: the server cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None) -> None:
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        try:
            self._process = subprocess.Popen(  # noqa: S603 (a list, no shell)
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (this process has one thread)
            )
        except OSError as error:
            raise ServerError(f"{command[0]} cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """Return the exit status: None while the process runs, negative for the signal that ended it."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process."""
        self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the process to end; return whether it has."""
        deadline = time.monotonic() + timeout_s
        while self.exit_status() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self.exit_status() is not None

    def kill(self) -> None:
        """Kill every process of the server's group; return when their memory, GPUs and ports are free again.

        A process that the kernel does not end within 20 seconds is left behind.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + _GONE_S
        while any(_members(self._process.pid)) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 2)
        # Where this process is the first of a container, the server's orphans have become its children.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self._process.pid, os.WNOHANG)[0]:
                pass


def _members(group: int) -> Iterator[int]:
    """Yield the processes of a group that have not ended yet."""
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[0] not in "ZX" and int(fields[2]) == group:
            yield int(folder.name)
