"""The serving of a deployment until a stop is requested, by one server after another where servers die.

Owns the order of steps: start, wait until the server is ready, watch, let it and what is in front of it call themselves
not ready, serve on for a time, let what is in front of it refuse, drain both; after a death, say what died, wait, and
start again while `Restarts` agrees. Everything that a server leaves is removed before the next one starts. Never starts
a process itself, and never decides whether a death is worth another start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from trident_ensemble.contract.errors import ServerDiedError, ServerError
from trident_tools.server.restarts import MAX_FAILED_STARTS, Failure, Restarts
from trident_tools.server.signals import StopSignals
from trident_tools.server.supervisor import Supervisor
from trident_tools.server.triton_log import TritonLog

_POLL_S = 0.1


class Front(Protocol):
    """A program in front of a server, which sends requests to it; a `GatewayKeeper` keeps one."""

    @property
    def has_cut(self) -> bool:
        """Whether some of its requests were cut when it was drained."""
        ...

    def begin_drain(self) -> None:
        """Let it call itself not ready, and refuse new requests after the delay that it was told; return at once."""
        ...

    def wait_until_refusing(self) -> None:
        """Return when it refuses new requests; to be called after that delay."""
        ...

    def has_drained(self) -> bool:
        """Return whether all its requests have ended since then; to be called until they have."""
        ...


class NoFront:
    """The lack of a program in front of a server."""

    has_cut = False

    def begin_drain(self) -> None:
        """Ask nobody to refuse anything."""

    def wait_until_refusing(self) -> None:
        """Return at once: nobody sends any request."""

    def has_drained(self) -> bool:
        """Return True at once: nobody has any request."""
        return True


class Serving:
    """A deployment that is served.

    Args:
        start: starts a server and returns its supervisor; raises ServerError where that is impossible.
        restarts: decides about another start.
        signals: the signals to this process; one ends the serving, also while it waits.
        log: the log of the servers.
        loading: a context that is entered while a server loads, and shows that it does.
        announce: is called with the seconds that the first server took to become ready.
        say: is called with one line about what happens.
        complain: is called with what went wrong, which must be shown in any case.
        meanwhile: is called a few times a second between a death and the next start.
        front: sends requests to the server. It refuses new ones before the server does, so that its clients get its own
            refusals, and the server is there until its last request has ended.
    """

    def __init__(
        self,
        start: Callable[[], Supervisor],
        restarts: Restarts,
        signals: StopSignals,
        log: TritonLog,
        *,
        loading: Callable[[], AbstractContextManager[object]],
        announce: Callable[[float], None],
        say: Callable[[str], None],
        complain: Callable[[str], None],
        meanwhile: Callable[[], None],
        front: Front,
        drain_delay_s: float,
    ) -> None:
        self._start = start
        self._restarts = restarts
        self._signals = signals
        self._log = log
        self._loading = loading
        self._announce = announce
        self._say = say
        self._complain = complain
        self._meanwhile = meanwhile
        self._front = front
        self._drain_delay_s = drain_delay_s
        self._num_starts = 0
        self._was_ready = False

    @property
    def num_starts(self) -> int:
        """Number of servers that have been started."""
        return self._num_starts

    def run(self) -> int:
        """Serve until a signal; return 0, or what `Supervisor.drain` returns; 1 if the front cut requests.

        Raises:
            ServerError: a server could not be started or has died, and is not started again; says what its log says.
        """
        while True:
            self._log.begin()
            try:
                return self._serve_once()
            except ServerError as error:
                delay_s = None if self._signals.count else self._restarts.delay_after(self._failure(error))
                if delay_s is None:
                    raise self._explained(error) from None
                self._complain(self._story(error, delay_s))
            if not self._wait(delay_s):
                self._say("Stopped before it was started again.")
                return 0

    def _serve_once(self) -> int:
        began = time.monotonic()
        supervisor = self._start()
        self._num_starts += 1
        try:
            with self._loading():
                is_ready = supervisor.wait_until_ready()
            if not is_ready:
                self._say("Stopped before it was ready.")
                supervisor.stop()
                return 0
            self._tell_ready(time.monotonic() - began)
            supervisor.watch()
            if self._drain_delay_s:
                delay = f"{self._drain_delay_s:g} s"
                self._say(f"Draining: not ready from now on, refusing in {delay}; a second signal stops at once.")
            self._front.begin_drain()
            supervisor.leave(self._drain_delay_s)
            self._say("Draining: requests in flight finish, new ones are refused.")
            began = time.monotonic()
            self._front.wait_until_refusing()
            outcome = supervisor.drain(began, self._front.has_drained)
            self._say("Stopped.")
            return outcome or int(self._front.has_cut)
        finally:
            supervisor.clean_up()

    def _tell_ready(self, seconds: float) -> None:
        if self._was_ready:
            self._say(f"Ready again after {seconds:.1f} s.")
        else:
            self._was_ready = True
            self._announce(seconds)

    def _failure(self, error: ServerError) -> Failure:
        ready_s = error.ready_s if isinstance(error, ServerDiedError) else None
        has_crashed = error.has_crashed if isinstance(error, ServerDiedError) else False
        is_transient = self._log.tells_of_transient_failure()
        if is_transient is None:  # an orderly refusal ends with an exit status, so a crash is all that can be told
            is_transient = has_crashed
        return Failure(ready_s, has_crashed=has_crashed, is_transient=is_transient)

    def _wait(self, seconds: float) -> bool:
        """Wait; return False as soon as a stop is asked for."""
        deadline = time.monotonic() + seconds
        while not self._signals.count:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return True
            self._meanwhile()
            time.sleep(min(left_s, _POLL_S))
        return False

    def _story(self, error: ServerError, delay_s: float) -> str:
        """Return what died, the last lines of its log, and what follows."""
        again = "again" if self._was_ready else "once more"
        return "\n".join([str(error), *self._log_lines(), f"Starting it {again} in {delay_s:g} s."])

    def _explained(self, error: ServerError) -> ServerError:
        """Return the error with the log's lines about it, and the reason why there is no other start."""
        lines = [str(error), *self._log_lines()]
        if self._restarts.num_failed_starts >= MAX_FAILED_STARTS:
            lines.append(f"{self._restarts.num_failed_starts} starts in a row have failed; there is no other.")
        elif self._would_restart(error):
            lines.append("It is not started again; with --restart it would be.")
        if self._log.path is not None and not self._log.is_empty():
            lines.append(f"The whole log: {self._log.path}")
        return ServerError("\n".join(lines))

    def _would_restart(self, error: ServerError) -> bool:
        """Return whether there is no other start only because `--restart` is off; a draining server never gets one."""
        has_served = isinstance(error, ServerDiedError) and error.ready_s is not None
        return has_served and not self._restarts.is_enabled and not self._signals.count

    def _log_lines(self) -> list[str]:
        return [f"  {line}" for line in self._log.last_errors() or self._log.last_lines()]
