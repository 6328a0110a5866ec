"""The gateway beside a server: started, started again where it dies, and drained with the server.

Owns the gateway's process and the decision when another one is started. A death of the gateway never touches
tritonserver, and one of tritonserver never touches the gateway, which waits for the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from trident_ensemble.contract.errors import ServerError, TridentError
from trident_tools.server.gateway_command import EXIT_CUT, last_complaint
from trident_tools.server.restarts import FIRST_DELAY_S, HEALTHY_S, MOST_DELAY_S
from trident_tools.server.server_process import ServerProcess
from trident_tools.server.signals import StopSignals, describe_ending

_POLL_S = 0.05
#: Seconds beyond its own timeout in which the gateway must have ended.
_GRACE_S = 5.0
#: Seconds in which a gateway that is asked to stop must call itself not ready.
_REFUSING_S = 5.0
#: Seconds in which what a gateway had accepted before that is on its way to the server.
_HAND_OVER_S = 0.5
#: Seconds in which a gateway that is to end at once tells its clients so.
_CUT_S = 2.0
#: Seconds in which a gateway that is asked to stop ends by itself where it has no delay and nothing to wait for. A
#: second signal that follows the first without a pause could be taken for one with it.
_IDLE_STOP_S = 0.3
#: Seconds in which a gateway must end that has been asked twice.
_STOP_S = 3.0


class Process(Protocol):
    """The process of a gateway; `ServerProcess` is one."""

    def exit_status(self) -> int | None:
        """Return the exit status; None while the process runs."""
        ...

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for the process to end; return whether it has."""
        ...

    def kill(self) -> None:
        """Kill the process; return when it is gone."""
        ...


class GatewayKeeper:
    """Keeps one gateway running.

    Args:
        start: starts a gateway; raises ServerError where that is impossible.
        is_ready: asks the gateway that runs whether it takes requests.
        signals: the signals to this process.
        drain_delay_s: what the gateway was told.
        drain_timeout_s: likewise.
        last_words: returns what the gateway has complained of since it was started; may be empty.
        announce: is called once, when the first gateway is ready.
        complain: is called with what went wrong, which must be shown in any case.
    """

    def __init__(
        self,
        start: Callable[[], Process],
        *,
        is_ready: Callable[[], bool],
        signals: StopSignals,
        drain_delay_s: float,
        drain_timeout_s: float,
        last_words: Callable[[], str],
        announce: Callable[[], None],
        complain: Callable[[str], None],
    ) -> None:
        self._start = start
        self._is_ready = is_ready
        self._signals = signals
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._last_words = last_words
        self._announce = announce
        self._complain = complain
        self._process: Process | None = None
        self._started_at = 0.0
        self._start_again_at = 0.0
        self._num_delays = 0
        self._has_announced = False
        self._drained_by = 0.0
        self._has_cut = False

    @property
    def has_cut(self) -> bool:
        """Whether requests of the gateway were cut when it was drained."""
        return self._has_cut

    def start(self) -> None:
        """Start the first gateway.

        Raises:
            ServerError: it cannot be started.
        """
        self._process = self._start()
        self._started_at = time.monotonic()

    def tend(self) -> None:
        """Look after the gateway; to be called a few times a second for as long as the server is looked after.

        Raises:
            TridentError: the first gateway ended with an error before it was ready: it would do so again.
        """
        if self._process is None:
            if time.monotonic() >= self._start_again_at:
                self._start_again()
        elif self._process.exit_status() is not None:
            self._take_note_of_death(self._process)
        elif not self._has_announced and self._is_ready():
            self._has_announced = True
            self._announce()

    def begin_drain(self) -> None:
        """Let the gateway call itself not ready, and refuse new requests after its delay; return at once."""
        process = self._process
        if process is not None:
            process.ask_to_stop()
            self._drained_by = time.monotonic() + self._drain_delay_s + self._drain_timeout_s + _GRACE_S

    def wait_until_refusing(self) -> None:
        """Return when the gateway refuses new requests, and the server has those that it had accepted.

        To be called after the gateway's delay.
        """
        process = self._process
        if process is None:
            return
        refusing_by = time.monotonic() + _REFUSING_S
        while self._is_ready() and time.monotonic() < refusing_by:
            if process.wait(_POLL_S) or self._signals.count > 1:
                return
        process.wait(_HAND_OVER_S)

    def has_drained(self) -> bool:
        """Return whether the gateway that was drained has ended; to be called until it has.

        A second signal to this process lets it cut its requests at once, and the end of its time ends it.
        """
        process = self._process
        if process is None:
            return True
        status = process.exit_status()
        if status is None and self._signals.count > 1:
            process.ask_to_stop()  # its second signal, too: its clients are told
            process.wait(_CUT_S)
            status = process.exit_status()
        elif status is None and time.monotonic() < self._drained_by:
            return False
        process.kill()
        self._process = None
        self._has_cut = status in {None, EXIT_CUT}
        return True

    def clean_up(self) -> None:
        """End a gateway that still runs; to be called last in every case."""
        process, self._process = self._process, None
        if process is not None:
            process.ask_to_stop()
            if not process.wait(_IDLE_STOP_S):
                process.ask_to_stop()  # skips its delay, and its clients are told
                process.wait(_STOP_S)
            process.kill()

    def _take_note_of_death(self, process: Process) -> None:
        status = process.exit_status()
        assert status is not None
        process.kill()  # what it may have started itself
        self._process = None
        words = self._last_words() if status > 0 else ""  # a crash has no words for itself
        what = f"the gateway ended ({describe_ending(status)}){f': {words}' if words else ''}"
        if status > 0 and not self._has_announced:
            raise TridentError(f"{what}\n--no-openai serves without it.")
        self._try_again(what)

    def _start_again(self) -> None:
        try:
            self.start()
        except ServerError as error:
            self._try_again(str(error))

    def _try_again(self, what: str) -> None:
        now = time.monotonic()
        if now - self._started_at >= HEALTHY_S:
            self._num_delays = 0
        delay_s = min(FIRST_DELAY_S * 2.0 ** min(self._num_delays, 30), MOST_DELAY_S)
        self._num_delays += 1
        self._start_again_at = now + delay_s
        self._complain(f"{what}\ntritonserver goes on; starting the gateway again in {delay_s:g} s.")


def keep_gateway(
    command: Sequence[str],
    log: IO[bytes] | None,
    *,
    is_ready: Callable[[], bool],
    signals: StopSignals,
    drain_delay_s: float,
    drain_timeout_s: float,
    announce: Callable[[], None],
    complain: Callable[[str], None],
) -> GatewayKeeper:
    """Return a keeper of real gateways, none of which has been started yet.

    Args:
        command: the gateway's command line.
        log: receives its output, beside that of others; None to write to the output of this process.
        is_ready: as `GatewayKeeper` has it, and so are the others.
        signals: likewise.
        drain_delay_s: likewise.
        drain_timeout_s: likewise.
        announce: likewise.
        complain: likewise.
    """
    path = None if log is None else Path(log.name)
    begin = 0

    def start() -> ServerProcess:
        nonlocal begin
        begin = 0 if path is None else path.stat().st_size
        return ServerProcess(command, os.environ, log)

    return GatewayKeeper(
        start,
        is_ready=is_ready,
        signals=signals,
        drain_delay_s=drain_delay_s,
        drain_timeout_s=drain_timeout_s,
        last_words=lambda: "" if path is None else last_complaint(path, begin),
        announce=announce,
        complain=complain,
    )
