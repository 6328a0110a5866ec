"""A deployment over the deaths of its servers, with supervisors that do as they are told and a clock that is turned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from trident_ensemble.contract.errors import ServerDiedError, ServerError
from trident_tools.server import serving
from trident_tools.server.restarts import MAX_FAILED_STARTS, Restarts
from trident_tools.server.serving import Serving
from trident_tools.server.signals import StopSignals
from trident_tools.server.supervisor import Supervisor
from trident_tools.server.triton_log import TritonLog

LOCK = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'\n"
PORT = (
    'E1128 17:21:47.315181 12035 main.cc:257] "failed to start HTTP service: Unavailable - '
    "Socket '127.0.0.1:8000' already in use \"\n"
)
CONFIG = 'E1128 17:21:47.315181 12035 model_lifecycle.cc:642] "failed to load: parameters.token_budgt: unknown"\n'


def ended(*, by_signal: bool = False) -> ServerDiedError:
    return ServerDiedError("tritonserver ended while loading", ready_s=None, has_crashed=by_signal)


def died(ready_s: float = 1.0) -> ServerDiedError:
    return ServerDiedError("model 'core': its process died", ready_s=ready_s, has_crashed=False)


class Told(Supervisor):
    """A server whose life is written down: what it logs, and how it dies; None: it serves until a signal."""

    def __init__(self, stage: Stage, logged: str, death: ServerDiedError | None) -> None:
        self._stage, self._logged, self._death_told = stage, logged, death

    def wait_until_ready(self) -> bool:
        with self._stage.path.open("a", encoding="utf-8") as log:
            log.write(self._logged)
        if self._death_told and self._death_told.ready_s is None:
            raise self._death_told
        return True

    def watch(self) -> None:
        if self._death_told:
            raise self._death_told
        self._stage.signals.count = 1

    def leave(self, delay_s: float) -> None:
        self._stage.events.append(f"leaves for {delay_s:g} s")
        self._stage.now += delay_s

    def drain(self, began: float, has_front_drained: Callable[[], bool]) -> int:
        self._stage.events.append(f"drained from {began}")
        while not has_front_drained():
            self._stage.events.append("waited for the gateway")
        return 0

    def clean_up(self) -> None:
        self._stage.events.append("cleaned up")


class Stage:
    """Everything around a `Serving`, and what happened, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()
        self.signals = StopSignals()
        self.events: list[str] = []
        self.has_log = True
        self.signal_at: float | None = None
        self.now = 0.0
        self.num_looks = 0
        self.gateway_finishes = True
        self.drain_delay_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.signal_at is not None and self.now >= self.signal_at:
            self.signals.count = 1

    def serve(self, *lives: tuple[str, ServerDiedError | None] | ServerError, restart: bool = True) -> int:
        told = iter(lives)

        def start() -> Supervisor:
            life = next(told)
            if isinstance(life, ServerError):
                raise life
            self.events.append(f"started at {self.now:.1f}")
            return Told(self, *life)

        return Serving(
            start,
            Restarts(is_enabled=restart),
            self.signals,
            TritonLog(self.path if self.has_log else None),
            loading=nullcontext,
            announce=lambda _seconds: self.events.append("ready"),
            say=self.events.append,
            complain=self.events.append,
            meanwhile=self.meanwhile,
            front=self,
            drain_delay_s=self.drain_delay_s,
        ).run()

    def meanwhile(self) -> None:
        self.num_looks += 1

    def begin_drain(self) -> None:
        self.events.append("the gateway leaves")

    def wait_until_refusing(self) -> None:
        self.events.append("the gateway refuses")
        self.now += 2

    def has_drained(self) -> bool:
        return self.events[-1] == "waited for the gateway"

    @property
    def has_cut(self) -> bool:
        return not self.gateway_finishes

    @property
    def starts(self) -> list[float]:
        return [float(event.split()[-1]) for event in self.events if event.startswith("started")]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path / "log")
    monkeypatch.setattr(serving, "time", SimpleNamespace(monotonic=lambda: stage.now, sleep=stage.sleep))
    return stage


def test_serving_a_server_that_died_is_cleaned_up_after_and_started_again(stage: Stage) -> None:
    assert stage.serve((CONFIG, died()), ("", died()), ("", None)) == 0
    assert stage.starts == [0, 1, 3]
    assert stage.events == [
        "started at 0.0",
        "ready",
        "cleaned up",
        "model 'core': its process died\n  failed to load: parameters.token_budgt: unknown\nStarting it again in 1 s.",
        "started at 1.0",
        "Ready again after 0.0 s.",
        "cleaned up",
        "model 'core': its process died\nStarting it again in 2 s.",
        "started at 3.0",
        "Ready again after 0.0 s.",
        "the gateway leaves",
        "leaves for 0 s",
        "Draining: requests in flight finish, new ones are refused.",
        "the gateway refuses",
        "drained from 3.0",
        "waited for the gateway",
        "Stopped.",
        "cleaned up",
    ]


def test_serving_without_restarts_a_death_is_the_end_and_says_what_would_help(stage: Stage) -> None:
    with pytest.raises(ServerError, match=r"its process died\n.*It is not started again; with --restart it would be"):
        stage.serve(("", died()), restart=False)
    assert stage.events[-1] == "cleaned up"


def test_serving_a_signal_ends_the_wait_at_once(stage: Stage) -> None:
    stage.signal_at = 5.2
    assert stage.serve(*[("", died())] * 3) == 0
    assert stage.now < 5.4
    assert stage.starts == [0, 1, 3]
    assert stage.events[-1] == "Stopped before it was started again."


@pytest.mark.parametrize("restart", [True, False])
def test_serving_a_death_while_draining_is_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    def drain(_supervisor: Supervisor, _began: float, _has_front_drained: Callable[[], bool]) -> int:
        raise died()

    monkeypatch.setattr(Told, "drain", drain)
    with pytest.raises(ServerError, match="its process died") as raised:
        stage.serve(("", None), restart=restart)
    assert "--restart" not in str(raised.value), "it would not help"


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(("logged", "by_signal"), [(LOCK, True), (LOCK, False), (PORT, False)])
def test_serving_a_start_that_failed_by_chance_is_tried_once_more(
    stage: Stage, restart: bool, logged: str, by_signal: bool
) -> None:
    assert stage.serve((logged, ended(by_signal=by_signal)), ("", None), restart=restart) == 0
    assert stage.events[2].endswith("Starting it once more in 1 s.")
    assert stage.events[-2] == "Stopped."


@pytest.mark.parametrize("logged", [LOCK, PORT])
def test_serving_and_no_more_than_once(stage: Stage, logged: str) -> None:
    with pytest.raises(ServerError, match="ended while loading"):
        stage.serve((logged, ended()), (logged, ended()))
    assert stage.starts == [0, 1]


def test_serving_what_an_earlier_server_logged_counts_no_more(stage: Stage) -> None:
    with pytest.raises(ServerError) as caught:
        stage.serve((LOCK, ended()), (CONFIG, ended()))
    assert "token_budgt" in str(caught.value)
    assert "lock_exception" not in str(caught.value)


@pytest.mark.parametrize("restart", [True, False])
def test_serving_a_configuration_that_is_refused_is_tried_once(stage: Stage, restart: bool) -> None:
    with pytest.raises(ServerError, match="token_budgt"):
        stage.serve((CONFIG, ended()), restart=restart)
    assert stage.starts == [0]


def test_serving_a_crash_is_known_by_its_signal_where_no_log_is_kept(stage: Stage) -> None:
    stage.has_log = False
    assert stage.serve((LOCK, ended(by_signal=True)), ("", None), restart=False) == 0
    stage.signals.count = 0
    with pytest.raises(ServerError):
        stage.serve((PORT, ended()), restart=False)


def test_serving_a_server_that_never_comes_up_again_is_given_up(stage: Stage) -> None:
    with pytest.raises(ServerError, match=rf"{MAX_FAILED_STARTS} starts in a row have failed"):
        stage.serve(("", died()), *[("", ended())] * MAX_FAILED_STARTS)
    assert stage.starts == [0, 1, 3, 7, 15, 31]


def test_serving_a_port_that_lingers_after_a_death_is_waited_for(stage: Stage) -> None:
    taken = ServerError("--http-port 8000: cannot listen on 127.0.0.1: Address already in use; choose another")
    assert stage.serve(("", died()), taken, ("", None)) == 0
    assert stage.starts == [0, 3]


def test_serving_what_is_wrong_at_the_first_start_is_said_at_once(stage: Stage) -> None:
    with pytest.raises(ServerError, match="cannot listen"):
        stage.serve(ServerError("--http-port 8000: cannot listen on 127.0.0.1"))
    assert stage.now == 0


def test_serving_requests_of_the_gateway_that_were_cut_are_a_failure_although_the_server_was_drained(
    stage: Stage,
) -> None:
    stage.gateway_finishes = False
    assert stage.serve(("", None)) == 1
    assert stage.events[-4:] == ["drained from 0.0", "waited for the gateway", "Stopped.", "cleaned up"]


def test_serving_the_gateway_is_looked_after_while_a_server_is_waited_for(stage: Stage) -> None:
    assert stage.serve(("", died()), ("", None)) == 0
    assert stage.num_looks >= 10


def test_serving_everything_is_served_for_the_delay_and_what_runs_has_its_time_after_it(stage: Stage) -> None:
    stage.drain_delay_s = 15
    assert stage.serve(("", None)) == 0
    assert stage.events[2:] == [
        "Draining: not ready from now on, refusing in 15 s; a second signal stops at once.",
        "the gateway leaves",
        "leaves for 15 s",
        "Draining: requests in flight finish, new ones are refused.",
        "the gateway refuses",
        "drained from 15.0",
        "waited for the gateway",
        "Stopped.",
        "cleaned up",
    ]
