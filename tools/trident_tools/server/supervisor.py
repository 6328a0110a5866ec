"""The supervision of a server until it is ready, while it serves, and while it drains.

Owns the decisions when a death is a failure, when draining is over, and when to wait no longer. Never starts a process
and never prints; `say` is told what happens.

Once it has been asked to stop, Triton refuses the inner steps of ensemble requests in flight, and it does not end while
a client holds a gRPC stream open. Hence the order of draining: withdraw the server's readiness, and serve on until load
balancers have learned of it; give notice, so that the core refuses new requests; wait until the core holds nothing; ask
Triton to stop; wait until the models' processes have ended; and then wait no longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from trident_ensemble.contract.errors import ServerDiedError
from trident_ensemble.draining import DrainNotice
from trident_tools.server.memory_kills import MemoryKills
from trident_tools.server.server_process import ServerProcess
from trident_tools.server.signals import StopSignals, describe_ending
from trident_tools.server.stubs import Stub, StubWatch
from trident_tools.server.triton_status import READY, UNLOADING, TritonStatus
from trident_tools.server.withdrawal import Withdrawal

_POLL_S = 0.2
_DISCOVER_S = 2.0
#: How long a model must still be ready after the end of its stub; a model that is unloaded is not.
_CONFIRM_S = 1.0
#: How long a version must still be unloading after the end of a stub: Triton ends its instances one after another.
_CONFIRM_UNLOADING_S = 10.0
#: How long Triton may take to end by itself, with its own message, when a stub has ended while models load. For a stub
#: that dies before it has read its model, Triton would wait without a limit.
_CONFIRM_LOADING_S = 10.0
#: How long the core must hold nothing, because answers pass through postprocessing after they leave it.
_SETTLE_S = 0.6
#: Seconds that Triton gets for requests that the core does not know of.
EXIT_TIMEOUT_S = 5
_STOP_S = 10.0
_AFTER_STUBS_S = 3.0


class _Suspect(NamedTuple):
    """A stub that has gone: since when, and its exit code, or None where Triton has collected it."""

    since: float
    exit_code: int | None


class Supervisor:
    """The supervisor of one server.

    Args:
        process: the process of the server.
        status: asks the server about its state.
        notice: tells its core to drain.
        signals: the signals to this process.
        drain_timeout_s: seconds that requests in flight get once a stop is requested.
        say: is called with one line about what happens.
        withdraw_readiness: makes the server say that it is not ready; raises OSError where it cannot.
        meanwhile: is called a few times a second until draining begins; what it raises ends the server.
        while_ready: is called likewise from the moment at which the server is ready.
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
        meanwhile: Callable[[], None],
        while_ready: Callable[[], None],
    ) -> None:
        self._process = process
        self._status = status
        self._notice = notice
        self._signals = signals
        self._drain_timeout_s = drain_timeout_s
        self._say = say
        self._withdrawal = Withdrawal(withdraw_readiness, say)
        self._meanwhile = meanwhile
        self._while_ready = while_ready
        self._stubs = StubWatch(process.pid)
        self._next_discovery = 0.0
        self._suspects: dict[Stub, _Suspect] = {}
        self._memory_kills = MemoryKills()
        self._ready_since: float | None = None

    def wait_until_ready(self) -> bool:
        """Wait until the models are loaded, however long that takes; return False if a stop is requested before.

        Raises:
            ServerDiedError: the server, or the process of a model, ended.
        """
        while True:
            # A stub that dies as soon as its model is ready must have been known before.
            self._stubs.discover()
            if self._status.is_ready():
                self._ready_since = time.monotonic()
                return True
            if self._process.exit_status() is not None:
                raise self._end_of_server("tritonserver ended while loading")
            for stub in self._confirmed(dict.fromkeys(self._stubs.fallen_while_loading(), _CONFIRM_LOADING_S)):
                raise self._end_of_stub(stub, "died while loading", "Triton would go on waiting for it")
            if self._signals.count:
                return False
            self._meanwhile()
            time.sleep(_POLL_S / 2)

    def watch(self) -> None:
        """Watch the server; return when a stop is requested.

        Raises:
            ServerDiedError: the server, or the process of a model that is ready, died.
        """
        while not self._signals.count:
            self._check()
            self._meanwhile()
            self._while_ready()
            time.sleep(_POLL_S)

    def leave(self, delay_s: float) -> None:
        """Let the server call itself not ready from now on, and serve everything for a time.

        A second signal ends that time.

        Args:
            delay_s: until load balancers have learned that requests should go elsewhere.

        Raises:
            ServerDiedError: the server died meanwhile.
        """
        until = time.monotonic() + delay_s
        self._withdrawal.attempt()
        while time.monotonic() < until and self._signals.count < 2:
            self._check()
            self._withdrawal.attempt()
            time.sleep(_POLL_S / 2)

    def drain(self, began: float, has_front_drained: Callable[[], bool]) -> int:
        """Let requests in flight finish and refuse new ones, then stop the server; to be called after `leave`.

        Args:
            began: when the time for requests in flight began, by `time.monotonic`.
            has_front_drained: is called a few times a second, and returns whether what sends requests to the server has
                ended. Until then the server goes on, because that has a limit of its own and cuts its requests itself.

        Returns:
            0 if all finished, 1 if some did not finish in time, 130 if a second signal cut the draining short.

        Raises:
            ServerDiedError: the server died before the requests finished.
        """
        self._notice.give()
        deadline = began + self._drain_timeout_s
        quiet_since: float | None = None
        told = 0
        while quiet_since is None or time.monotonic() - quiet_since < _SETTLE_S:
            self._check()
            self._withdrawal.attempt()
            is_last = has_front_drained()
            active = self._num_active()
            if active or not is_last:
                quiet_since = None
                if active and active != told:
                    self._say(f"{active} requests in flight; a second signal stops at once")
                    told = active
            elif quiet_since is None:
                quiet_since = time.monotonic()
            if self._signals.count > 1:
                return 130
            if active and is_last and time.monotonic() > deadline:
                self._say(f"{active} requests still in flight after {self._drain_timeout_s:g} s: they are cancelled")
                self.stop()
                return 1
            time.sleep(_POLL_S / 2)
        self.stop()
        return 0

    def stop(self) -> None:
        """Ask the server to stop; return when it has stopped, or when there is nothing left to wait for."""
        self._stubs.discover()
        self._process.ask_to_stop()
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline and self._signals.count < 2:
            if not self._stubs.living():
                deadline = min(deadline, time.monotonic() + _AFTER_STUBS_S)
            if self._process.wait(_POLL_S):
                return

    def clean_up(self) -> None:
        """End every process that still runs, and remove what it leaves behind; to be called last in every case."""
        self._stubs.discover()
        self._process.kill()
        self._stubs.remove_shared_memory()

    def _num_active(self) -> int:
        try:
            return self._status.num_active_requests()
        except OSError:
            return 1  # a server too busy to answer is not idle; one that died is found by `_check`

    def _check(self) -> None:
        """Raise `ServerDiedError` if a process has died that should run."""
        now = time.monotonic()
        if self._process.exit_status() is not None:
            raise self._end_of_server("tritonserver died")
        if now >= self._next_discovery:
            self._stubs.discover()
            self._next_discovery = now + _DISCOVER_S
        for stub, seconds in self._confirmed(self._deaths_after(self._stubs.fallen())).items():
            consequence = (
                "Triton would go on calling the model ready and fail its requests"
                if seconds == _CONFIRM_S
                else "Triton would wait for the last requests of this version without a limit"
            )
            raise self._end_of_stub(stub, "died", f"{consequence}, so the server has been stopped")

    def _deaths_after(self, fallen: Iterable[Stub]) -> dict[Stub, float]:
        """Return the stubs that were not unloaded, each with the seconds after which its end is a death; forget others.

        Where the server does not answer, each is one that should run.
        """
        found = dict.fromkeys(fallen, _CONFIRM_S)
        if not found:
            return found
        try:
            states = self._status.model_states()
        except OSError:
            return found
        for stub in list(found):
            state = states.get((stub.model, stub.version))
            if state == UNLOADING:
                found[stub] = _CONFIRM_UNLOADING_S
            elif state != READY:
                self._stubs.forget(stub)
                del found[stub]
        return found

    def _confirmed(self, fallen: Mapping[Stub, float]) -> dict[Stub, float]:
        """Return the stubs that have been gone for as long as is said of each without a break."""
        now = time.monotonic()
        self._suspects = {
            stub: self._suspects.get(stub) or _Suspect(now, self._stubs.exit_code(stub)) for stub in fallen
        }
        return {stub: limit for stub, limit in fallen.items() if now - self._suspects[stub].since >= limit}

    def _end_of_server(self, what: str) -> ServerDiedError:
        exit_code = self._process.exit_status()
        assert exit_code is not None
        # The server often dies with a stub that is killed, by a lock that the stub held.
        for stub in self._suspects:
            return self._end_of_stub(stub, "died", f"{what} after it ({describe_ending(exit_code)})")
        return self._death(what, exit_code, f"it was pid {self._process.pid}")

    def _end_of_stub(self, stub: Stub, what: str, consequence: str) -> ServerDiedError:
        whose = f"model {stub.model!r}, instance {stub.instance}: its process (pid {stub.pid})"
        return self._death(f"{whose} {what}", self._suspects[stub].exit_code, consequence)

    def _death(self, what: str, exit_code: int | None, remark: str) -> ServerDiedError:
        """Return the error for a death: what died, how if that is known, and whether memory had run out."""
        details = "" if exit_code is None else f" ({describe_ending(exit_code)})"
        if self._memory_kills.have_happened():
            details += "; the kernel has ended processes of this server for lack of memory"
        return ServerDiedError(
            f"{what}{details}; {remark}",
            ready_s=None if self._ready_since is None else time.monotonic() - self._ready_since,
            has_crashed=exit_code is not None and exit_code < 0,
        )
