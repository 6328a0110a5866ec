"""One rank as its leader sees it: a process and the socket to it.

Owns both, and the folders from which the process imports. Never waits without a limit: a process that holds a GPU may
be slow to end, or not end at all.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from trident_backend.engine.tensorrt.messages import Channel
from trident_ensemble.contract.errors import EngineError

#: How a rank is started; the descriptor of its socket comes last.
COMMAND = (sys.executable, "-m", "trident_backend.engine.tensorrt.rank_process")
#: Seconds in which a killed process must end, and its last lines must arrive.
_KILLED_S = 1.0
_LAST_LINES = 5


class Rank:
    """One rank other than the leader: its process and its socket.

    Args:
        rank: its number.
        ordinal: its GPU.
        command: starts it; the descriptor of its socket is appended.

    Raises:
        EngineError: the process cannot be started.
    """

    def __init__(self, rank: int, ordinal: int, command: Sequence[str]) -> None:
        self.name = f"rank {rank} (GPU {ordinal})"
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own module
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                cwd=os.sep,
            )
        except OSError as error:
            self.channel.close()
            raise EngineError(f"{self.name} cannot be started: {error}") from None
        finally:
            theirs.close()
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._log = threading.Thread(target=self._copy_log, name=f"trident-log-{rank}", daemon=True)
        self._log.start()

    def exit_message(self, status: int | None) -> str:
        """Return how the process ended, by the status that `end` returned, and the last lines of its log."""
        if status is None:
            ended = "is gone, but its process does not end"
        else:
            ended = "ended with " + (f"signal {_signal_name(-status)}" if status < 0 else f"exit status {status}")
        said = f"; it said last: {' | '.join(self._last_lines)}" if self._last_lines else ""
        return f"{self.name} {ended}{said}"

    def end(self, seconds: float) -> int | None:
        """Close the socket, which ends the process, and return its status.

        Args:
            seconds: until the process is killed.

        Returns:
            its status; None if not even that has ended it yet.
        """
        self.channel.close()
        status = self.wait(seconds)
        if status is None:
            self.process.kill()
            status = self.wait(_KILLED_S)
        self._log.join(_KILLED_S)
        return status

    def wait(self, seconds: float) -> int | None:
        """Wait so long for the process's end, and return its status; None if it has not ended."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _copy_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                text = line.decode(errors="backslashreplace").rstrip()
                self._last_lines.append(text)
                # The rank must not wait for room in the pipe, whatever becomes of our own log.
                with contextlib.suppress(OSError, ValueError):
                    print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def _environment() -> dict[str, str]:
    """Return an environment in which a rank imports what the leader does, from the same folders and no others."""
    folders = (str(Path(folder).absolute()) for folder in sys.path if folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)
