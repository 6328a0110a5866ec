"""The leader's side of the ranks: their processes, what they say, and the first failure among them.

Owns the processes and the threads that listen to them. A rank that fails, ends or talks nonsense takes all others with
it: what they compute together cannot go on without it. Never runs a step.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from trident_backend.engine.tensorrt.messages import Channel, Kind, Message
from trident_ensemble.errors import EngineError, EngineLostError

#: How a rank is started; the descriptor of its socket comes last.
COMMAND = (sys.executable, "-m", "trident_backend.engine.tensorrt.rank_process")
#: Seconds that ranks have to end after they were told to.
_END_S = 10.0
_LAST_LINES = 5


class Rank:
    """One rank other than the leader: its process and its socket.

    Args:
        rank: its number.
        ordinal: its GPU.
        command: starts it; gets the descriptor of its socket as last word.

    Raises:
        EngineError: the process cannot be started.
    """

    def __init__(self, rank: int, ordinal: int, command: Sequence[str]) -> None:
        self.name = f"rank {rank} (GPU {ordinal})"
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        #: What the leader imports, the rank finds where the leader does.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own module
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        except OSError as error:
            self.channel.close()
            raise EngineError(f"{self.name} cannot be started: {error}") from None
        finally:
            theirs.close()
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._log = threading.Thread(target=self._copy_log, name=f"trident-log-{rank}", daemon=True)
        self._log.start()

    def obituary(self) -> str:
        """How the process ended and what it said last; waits for its end, and brings it about if need be."""
        status = self.end()
        ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        said = f"; it said last: {' | '.join(self._last_lines)}" if self._last_lines else ""
        return f"{self.name} ended with {ended}{said}"

    def end(self) -> int:
        """Close the socket, which ends the process, and return its status."""
        self.channel.close()
        try:
            status = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._log.join(_END_S)
        return status

    def _copy_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                text = line.decode(errors="backslashreplace").rstrip()
                self._last_lines.append(text)
                print(f"{self.name}: {text}", file=sys.stderr, flush=True)


class Ranks:
    """All ranks other than the leader.

    Args:
        folder: the engine's.
        ordinals: the GPU of each rank; the first is the leader's.
        command: starts a rank, see `Rank`.

    Raises:
        EngineError: a process cannot be started.
    """

    def __init__(self, folder: Path, ordinals: Sequence[int], command: Sequence[str] = COMMAND) -> None:
        self._changed = threading.Condition()
        self._reached: dict[Rank, Kind | None] = {}
        self._failure = ""
        self._is_closing = False
        self._abort: Callable[[], None] = _nothing
        try:
            for rank, ordinal in enumerate(ordinals[1:], 1):
                self._start(folder, rank, ordinal, command)
        except EngineError:
            self.end()
            raise

    def broadcast(self, message: Message) -> None:
        """Tell all of them.

        Raises:
            EngineLostError: one of them has failed.
        """
        for rank in self._reached:
            try:
                rank.channel.send(message)
            except EngineError as error:
                # The listener knows more: how the process ended.
                with self._changed:
                    self._changed.wait_for(lambda: self._failure, _END_S)
                self.fail(f"{rank.name}: {error}")
        self.check()

    def wait_for(self, kind: Kind) -> None:
        """Wait until all of them have sent this kind of message.

        Raises:
            EngineLostError: one of them has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or all(each == kind for each in self._reached.values()))
        self.check()

    def on_failure(self, abort: Callable[[], None]) -> None:
        """Have this called, on another thread, when a rank fails: it ends whatever waits for that rank.

        Raises:
            EngineLostError: one of them has failed already.
        """
        with self._changed:
            self._abort = abort
            failure = self._failure
        if failure:
            abort()
        self.check()

    @property
    def has_failed(self) -> bool:
        """Whether one of them, or the leader, cannot go on."""
        return bool(self._failure)

    def check(self) -> None:
        """See that all of them are well.

        Raises:
            EngineLostError: one of them has failed; says which, and why.
        """
        if self._failure:
            raise self.lost()

    def lost(self) -> EngineLostError:
        """The first failure, as an error."""
        return EngineLostError(f"{self._failure}; the engine cannot go on without it")

    def fail(self, why: str) -> None:
        """Remember the first failure, of a rank or of the leader, and end what waits for it."""
        with self._changed:
            if self._failure or self._is_closing:
                return
            self._failure = why
            abort = self._abort
            self._changed.notify_all()
        # The others first, as they may wait for what will not come, and none of them must be waited for.
        for rank in self._reached:
            rank.channel.close()
        abort()

    def stop(self) -> None:
        """Tell all of them to free what they hold; `end` waits for them."""
        with self._changed:
            self._is_closing = True
        for rank in self._reached:
            with suppress(EngineError):  # it may have ended already
                rank.channel.send(Message(Kind.STOP))

    def end(self) -> None:
        """Leave none of them behind."""
        with self._changed:
            self._is_closing = True
        for rank in self._reached:
            with suppress(subprocess.TimeoutExpired):
                rank.process.wait(0 if self.has_failed else _END_S)
            rank.end()

    def _start(self, folder: Path, number: int, ordinal: int, command: Sequence[str]) -> None:
        rank = Rank(number, ordinal, command)
        self._reached[rank] = None
        start = {"folder": str(folder), "rank": number, "ordinal": ordinal}
        with suppress(EngineError):  # it may have ended already; the listener says how
            rank.channel.send(Message(Kind.START, json.dumps(start).encode()))
        threading.Thread(target=self._listen, args=(rank,), name=f"trident-rank-{number}", daemon=True).start()

    def _listen(self, rank: Rank) -> None:
        try:
            while (message := rank.channel.receive()) is not None:
                if message.kind is Kind.FAILED:
                    self.fail(f"{rank.name}: {message.text}")
                    return
                with self._changed:
                    self._reached[rank] = message.kind
                    self._changed.notify_all()
            if not self._is_closing:
                self.fail(rank.obituary())
        except EngineError as error:
            self.fail(f"{rank.name}: {error}")


def _nothing() -> None:
    """No collective runs yet."""
