"""The life of a server: until it is ready, while it serves, while it drains.

Owns the decisions: when a death is a failure, when draining is over, when patience is. Never starts a process and
never prints; it tells `say` what happens.

Triton refuses the inner steps of ensemble requests in flight once it has been asked to stop, and does not end while a
client holds a gRPC stream open. Hence the order of draining: give notice (the core refuses what is new), withdraw the
server's readiness, wait until the core holds nothing, ask Triton to stop, wait until the models' processes have left,
and wait no longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from trident_ensemble.contract.errors import ServerDiedError
from trident_ensemble.draining import DrainNotice
from trident_tools.server.memory_kills import MemoryKills
from trident_tools.server.server_process import ServerProcess
from trident_tools.server.signals import StopSignals, describe_ending
from trident_tools.server.stubs import Stub, StubWatch
from trident_tools.server.triton_status import TritonStatus

_POLL_S = 0.2
_DISCOVER_S = 2.0
#: A stub's model must be ready for so long after the stub's end: a model being unloaded ceases to be.
_CONFIRM_S = 1.0
#: While models load, Triton gets so long to end by itself when a stub has, for it says why. It does not always: one
#: that dies before it has read its model is waited for without a limit.
_CONFIRM_LOADING_S = 10.0
#: The core must hold nothing for so long: answers pass through postprocessing after they left it.
_SETTLE_S = 0.6
#: What Triton gets for requests that no core knows of.
EXIT_TIMEOUT_S = 5
_STOP_S = 10.0
_AFTER_STUBS_S = 3.0


class _Suspect(NamedTuple):
    """What is known of a stub that has gone: since when, and how it ended where Triton has taken no note of it."""

    since: float
    exit_code: int | None


class Supervisor:
    """Of one server.

    Args:
        process: the server.
        status: asks it.
        notice: tells its core to drain.
        signals: of this process.
        drain_timeout_s: requests in flight get so long once a stop is asked for.
        say: takes one line on what happens.
        withdraw_readiness: has the server say that it is not ready; raises OSError where it cannot.
    """

    def __init__(
        self,
        process: ServerProcess,
        status: TritonStatus,
        notice: DrainNotice,
        signals: StopSignals,
        *,
        drain_timeout_s: float,
        say: Callable[[str], None],
        withdraw_readiness: Callable[[], None],
    ) -> None:
        self._process = process
        self._status = status
        self._notice = notice
        self._signals = signals
        self._drain_timeout_s = drain_timeout_s
        self._say = say
        self._withdraw_readiness = withdraw_readiness
        self._stubs = StubWatch(process.pid)
        self._next_discovery = 0.0
        self._suspects: dict[Stub, _Suspect] = {}
        self._memory_kills = MemoryKills()
        self._ready_since: float | None = None

    def wait_until_ready(self) -> bool:
        """Wait, however long models load; False when a stop is asked for before.

        Raises:
            ServerDiedError: the server, or the process of a model, ended.
        """
        while True:
            # One that dies as soon as its model is ready must have been known before.
            self._stubs.discover()
            if self._status.is_ready():
                self._ready_since = time.monotonic()
                return True
            if self._process.exit_status() is not None:
                raise self._end_of_server("tritonserver ended while loading")
            for stub in self._confirmed(self._stubs.fallen_while_loading(), _CONFIRM_LOADING_S):
                raise self._end_of_stub(stub, "died while loading", "Triton would go on waiting for it")
            if self._signals.count:
                return False
            time.sleep(_POLL_S / 2)

    def watch(self) -> None:
        """Return when a stop is asked for.

        Raises:
            ServerDiedError: the server, or the process of a model that is ready, died.
        """
        while not self._signals.count:
            self._check()
            time.sleep(_POLL_S)

    def drain(self) -> int:
        """Let requests in flight finish, refuse new ones, then stop the server.

        Returns:
            0 when all finished; 1 when some did not in time; 130 when a second signal cut it short.

        Raises:
            ServerDiedError: the server died before they finished.
        """
        self._notice.give()
        deadline = time.monotonic() + self._drain_timeout_s
        try:
            self._withdraw_readiness()
        except OSError as error:
            self._say(f"It goes on calling itself ready: {error}")
        quiet_since: float | None = None
        told = 0
        while quiet_since is None or time.monotonic() - quiet_since < _SETTLE_S:
            self._check()
            active = self._num_active()
            if active:
                quiet_since = None
                if active != told:
                    self._say(f"{active} requests in flight; a second signal stops at once")
                    told = active
            elif quiet_since is None:
                quiet_since = time.monotonic()
            if self._signals.count > 1:
                return 130
            if active and time.monotonic() > deadline:
                self._say(f"{active} requests still in flight after {self._drain_timeout_s:g} s: they are cancelled")
                self.stop()
                return 1
            time.sleep(_POLL_S / 2)
        self.stop()
        return 0

    def stop(self) -> None:
        """Ask the server to stop; return when it has, or when there is nothing left to wait for."""
        self._stubs.discover()
        self._process.ask_to_stop()
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline and self._signals.count < 2:
            if not self._stubs.living():
                deadline = min(deadline, time.monotonic() + _AFTER_STUBS_S)
            if self._process.wait(_POLL_S):
                return

    def clean_up(self) -> None:
        """End whatever still runs and remove what it would leave behind; in every case, last."""
        self._stubs.discover()
        self._process.kill()
        self._stubs.remove_shared_memory()

    def _num_active(self) -> int:
        try:
            return self._status.num_active_requests()
        except OSError:
            return 1  # a server too busy to answer is not idle; one that died is found by `_check`

    def _check(self) -> None:
        """Find out whether anything has died that should live."""
        now = time.monotonic()
        if self._process.exit_status() is not None:
            raise self._end_of_server("tritonserver died")
        if now >= self._next_discovery:
            self._stubs.discover()
            self._next_discovery = now + _DISCOVER_S
        fallen = self._stubs.fallen()
        ready = self._ready_models() if fallen else None
        for stub in list(fallen):
            if ready is not None and (stub.model, stub.version) not in ready:
                self._stubs.forget(stub)  # it was unloaded
                fallen.remove(stub)
        for stub in self._confirmed(fallen, _CONFIRM_S):
            raise self._end_of_stub(
                stub,
                "died",
                "Triton would go on calling the model ready and fail its requests, so the server has been stopped",
            )

    def _confirmed(self, fallen: list[Stub], seconds: float) -> list[Stub]:
        """Those that have been seen fallen for so long, without a break."""
        now = time.monotonic()
        self._suspects = {
            stub: self._suspects.get(stub) or _Suspect(now, self._stubs.exit_code(stub)) for stub in fallen
        }
        return [stub for stub, suspect in self._suspects.items() if now - suspect.since >= seconds]

    def _ready_models(self) -> set[tuple[str, str]] | None:
        """None when the server does not answer: then a death counts as a failure."""
        try:
            return self._status.ready_models()
        except OSError:
            return None

    def _end_of_server(self, what: str) -> ServerDiedError:
        exit_code = self._process.exit_status()
        assert exit_code is not None
        # Of a stub that is killed the server often dies too, by a lock that the stub held.
        for stub in self._suspects:
            return self._end_of_stub(stub, "died", f"{what} after it ({describe_ending(exit_code)})")
        return self._death(what, exit_code, f"it was pid {self._process.pid}")

    def _end_of_stub(self, stub: Stub, what: str, consequence: str) -> ServerDiedError:
        whose = f"model {stub.model!r}, instance {stub.instance}: its process (pid {stub.pid})"
        return self._death(f"{whose} {what}", self._suspects[stub].exit_code, consequence)

    def _death(self, what: str, exit_code: int | None, remark: str) -> ServerDiedError:
        """The error for a death: what died, how if that is known, and whether memory had run out."""
        details = "" if exit_code is None else f" ({describe_ending(exit_code)})"
        if self._memory_kills.have_happened():
            details += "; the kernel has ended processes of this server for lack of memory"
        return ServerDiedError(
            f"{what}{details}; {remark}",
            ready_s=None if self._ready_since is None else time.monotonic() - self._ready_since,
            has_crashed=exit_code is not None and exit_code < 0,
        )
