"""Which deaths are failures, with sleeping processes in the place of stubs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trident_ensemble.contract.errors import ServerDiedError, ServerError
from trident_ensemble.draining import DrainNotice
from trident_tools.server import withdrawal
from trident_tools.server.memory_kills import MemoryKills
from trident_tools.server.server_process import ServerProcess
from trident_tools.server.signals import StopSignals, describe_ending
from trident_tools.server.stubs import StubWatch
from trident_tools.server.supervisor import Supervisor
from trident_tools.server.triton_log import TritonLog
from trident_tools.server.triton_server import Listen
from trident_tools.server.triton_status import TritonStatus

#: Keeps one stub of core_0_0 alive as long as the file `restart` exists, and reaps the dead. One more is there until
#: the file `configured` exists, as when Triton asks a model for its configuration.
_SERVER = """
import pathlib, subprocess, sys, time
words = ["/backends/python/triton_python_backend_stub", sys.argv[1], "memory", "core_0_0", "DEFAULT"]
stub = None
asked = subprocess.Popen([*words[:3], "core", "DEFAULT"], executable=sys.executable)
while True:
    if stub is None or (stub.poll() is not None and pathlib.Path(sys.argv[2]).exists()):
        stub = subprocess.Popen(words, executable=sys.executable)
    if asked.poll() is None and pathlib.Path(sys.argv[2]).with_name("configured").exists():
        asked.kill()
    time.sleep(0.05)
"""


class Status(TritonStatus):
    """A server whose models' states the test decides; None: it does not answer."""

    def __init__(self) -> None:
        super().__init__(Listen("127.0.0.1", 1, 2, 3), {})
        self.is_withdrawn = False
        self.num_refusals = 0
        self.num_tries = 0
        self.states: dict[tuple[str, str], str] | None = {("core", "1"): "READY"}
        self.active: list[int] = []

    def model_states(self) -> dict[tuple[str, str], str]:
        if self.states is None:
            raise OSError("no answer")
        return self.states

    def withdraw(self) -> None:
        self.num_tries += 1
        if self.num_tries <= self.num_refusals:
            raise OSError("no answer")
        self.is_withdrawn = True

    def num_active_requests(self) -> int:
        return self.active.pop(0) if self.active else 0


@pytest.fixture
def restart(tmp_path: Path) -> Path:
    """Exists: a dead stub gets a successor."""
    return tmp_path / "restart"


@pytest.fixture
def server(tmp_path: Path, restart: Path) -> Iterator[ServerProcess]:
    model = tmp_path / "models" / "core" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time; time.sleep(60)", encoding="utf-8")
    with (tmp_path / "log").open("wb") as log:
        process = ServerProcess([sys.executable, "-c", _SERVER, str(model), str(restart)], os.environ, log)
    yield process
    process.kill()


def only_stub(server: ServerProcess, other_than: int = 0) -> int:
    """Its process id, once it runs."""
    watch = StubWatch(server.pid)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        watch.discover()
        for stub in watch.living():
            if stub.pid != other_than and stub.serves:
                assert stub.place == ("core", "1", "core_0_0")
                return stub.pid
        time.sleep(0.05)
    raise AssertionError("no stub")


class Stop(StopSignals):
    """Asks to stop after a time, as a signal would."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def count(self) -> int:  # type: ignore[override]
        return int(time.monotonic() >= self._at)


def supervisor(server: ServerProcess, status: Status, seconds: float, notice: Path | None = None) -> Supervisor:
    return Supervisor(
        server,
        status,
        DrainNotice(notice),
        Stop(seconds),
        drain_timeout_s=30,
        say=lambda _line: None,
        withdraw_readiness=status.withdraw,
        meanwhile=lambda: None,
        while_ready=lambda: None,
    )


def test_supervisor_dead_stub_of_a_ready_model_is_a_failure(server: ServerProcess) -> None:
    watcher = supervisor(server, Status(), 60)
    pid = only_stub(server)
    watcher._check()
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ServerError, match=rf"model 'core', instance core_0_0: its process \(pid {pid}\) died"):
        watcher.watch()
    assert time.monotonic() - began < 30


class ReadyOnce(Status):
    """Is ready when it is asked for the second time, and then loses a stub at once."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__()
        self._server = server
        self.victim = 0

    def is_ready(self) -> bool:
        if self.victim:
            os.kill(self.victim, signal.SIGKILL)
            return True
        self.victim = only_stub(self._server)
        return False


def test_supervisor_a_stub_that_dies_as_soon_as_its_model_is_ready_is_a_failure(server: ServerProcess) -> None:
    status = ReadyOnce(server)
    watcher = supervisor(server, status, 60)
    assert watcher.wait_until_ready()
    with pytest.raises(ServerError, match=rf"instance core_0_0: its process \(pid {status.victim}\) died"):
        watcher.watch()


def test_supervisor_a_stub_that_was_asked_for_its_models_configuration_may_end(
    server: ServerProcess, tmp_path: Path
) -> None:
    watch = StubWatch(server.pid)
    deadline = time.monotonic() + 60
    while all(stub.serves for stub in watch.living()):
        assert time.monotonic() < deadline
        watch.discover()
    only_stub(server)
    watcher = supervisor(server, Status(), 3)
    watcher._check()
    (tmp_path / "configured").touch()
    watcher.watch()
    while not all(stub.serves for stub in watch.living()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_supervisor_dead_stub_of_a_server_that_does_not_answer_is_a_failure(server: ServerProcess) -> None:
    status = Status()
    status.states = None
    watcher = supervisor(server, status, 60)
    pid = only_stub(server)
    watcher._check()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerError, match="died"):
        watcher.watch()


@pytest.mark.parametrize("state", [None, "UNAVAILABLE", "LOADING"])
def test_supervisor_unloaded_model_is_no_failure(server: ServerProcess, state: str | None) -> None:
    status = Status()
    watcher = supervisor(server, status, 3)
    pid = only_stub(server)
    watcher._check()
    status.states = {("core", "1"): state} if state else {}
    os.kill(pid, signal.SIGKILL)
    watcher.watch()


def test_supervisor_a_version_that_dies_with_requests_while_it_is_unloaded_is_a_failure(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its streams would never end, and no other version could be loaded."""
    monkeypatch.setattr("trident_tools.server.supervisor._CONFIRM_UNLOADING_S", 2.0)
    status = Status()
    status.states = {("core", "1"): "UNLOADING", ("core", "2"): "READY"}
    watcher = supervisor(server, status, 60)
    pid = only_stub(server)
    watcher._check()
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ServerDiedError, match=rf"\(pid {pid}\) died.*; Triton would wait for the last requests"):
        watcher.watch()
    assert time.monotonic() - began >= 2


def test_supervisor_a_version_may_take_its_time_between_its_first_process_and_its_last(server: ServerProcess) -> None:
    status = Status()
    status.states = {("core", "1"): "UNLOADING"}
    watcher = supervisor(server, status, 2.5)
    pid = only_stub(server)
    watcher._check()
    os.kill(pid, signal.SIGKILL)
    watcher.watch()
    status.states = {("core", "1"): "UNAVAILABLE"}
    watcher._check()
    assert not watcher._suspects


def test_supervisor_reloaded_model_is_no_failure(server: ServerProcess, restart: Path) -> None:
    restart.touch()
    watcher = supervisor(server, Status(), 3)
    pid = only_stub(server)
    watcher._check()
    os.kill(pid, signal.SIGKILL)
    watcher.watch()
    assert only_stub(server, other_than=pid)


def test_supervisor_dead_server_is_a_failure(server: ServerProcess) -> None:
    watcher = supervisor(server, Status(), 60)
    os.kill(server.pid, signal.SIGTERM)
    with pytest.raises(ServerError, match="tritonserver died"):
        watcher.watch()


def test_supervisor_drain_gives_notice_and_waits_until_the_core_is_empty(server: ServerProcess, tmp_path: Path) -> None:
    status = Status()
    status.active = [2, 2, 1, 0, 1, 0]
    status.num_refusals = 99  # that its readiness cannot be withdrawn is no reason not to drain
    only_stub(server)
    notice = tmp_path / "notice"
    watcher = supervisor(server, status, 0, notice)
    watcher.watch()
    assert server.exit_status() is None
    watcher.leave(0)
    assert watcher.drain(time.monotonic(), lambda: True) == 0
    assert notice.exists()
    assert status.num_tries
    assert not status.active
    assert server.exit_status() == -signal.SIGTERM


def test_supervisor_drain_refuses_while_the_gateway_still_has_requests_and_waits_for_it(
    server: ServerProcess, tmp_path: Path
) -> None:
    """Its requests may run for longer than the server's own: it has a limit itself."""
    status = Status()
    status.active = [1, 1, 1, 0]
    only_stub(server)
    notice = tmp_path / "notice"
    watcher = supervisor(server, status, 0, notice)
    watcher.watch()
    watcher.leave(0)
    looks = iter([False] * 6)

    def has_front_drained() -> bool:
        assert notice.exists()
        assert status.is_withdrawn
        assert server.exit_status() is None
        return next(looks, True)

    assert watcher.drain(time.monotonic() - 1000, has_front_drained) == 0
    assert next(looks, True), "it has been asked until it had ended"
    assert server.exit_status() == -signal.SIGTERM


@pytest.mark.parametrize("phase", ["leave", "drain"])
def test_supervisor_readiness_is_withdrawn_again_and_again_until_the_server_has_taken_it(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr(withdrawal, "_AGAIN_S", 0.1)
    said: list[str] = []
    status = Status()
    status.num_refusals = 3
    only_stub(server)
    watcher = supervisor(server, status, 0)
    watcher._withdrawal._say = said.append
    deadline = time.monotonic() + 60
    watcher.leave(3 if phase == "leave" else 0)
    assert status.is_withdrawn is (phase == "leave")
    watcher.drain(time.monotonic(), lambda: status.is_withdrawn or time.monotonic() > deadline)
    assert status.num_tries == 4
    assert said == ["It goes on calling itself ready, and is told again: no answer"]


class Counted(StopSignals):
    """Signals that the test counts itself."""

    count = 1


def test_supervisor_leaves_at_once_and_refuses_only_after_the_delay(server: ServerProcess, tmp_path: Path) -> None:
    status, signals, notice = Status(), Counted(), tmp_path / "notice"
    only_stub(server)
    watcher = supervisor(server, status, 0, notice)
    watcher._signals = signals
    began = time.monotonic()
    watcher.leave(0.5)
    assert time.monotonic() - began >= 0.5
    assert status.is_withdrawn
    assert not notice.exists()
    signals.count = 2
    watcher.leave(600)  # is skipped by the second signal
    assert not notice.exists()


def test_supervisor_a_server_that_dies_while_it_leaves_is_a_failure(server: ServerProcess) -> None:
    watcher = supervisor(server, Status(), 60)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(ServerDiedError, match="tritonserver died"):
        watcher.leave(600)


def test_supervisor_log_gives_each_error_once_and_nothing_harmless(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        'I1121 05:07:37.446358 28957 model_lifecycle.cc:472] "loading: boom:1"\n'
        'E1121 05:07:37.432243 28957 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        'E1121 05:07:39.794550 28957 backend_model.cc:692] "ERROR: first\\n\\nAt:\\n  model.py(3): initialize\\n"\n'
        'E1121 05:07:39.794663 28957 model_lifecycle.cc:642] "second"\n'
        'E1121 05:07:39.794663 28957 model_lifecycle.cc:642] "second"\n'
        "error: creating server: Internal - failed to load all models\n",
        encoding="utf-8",
    )
    assert TritonLog(log).last_errors() == [
        "ERROR: first At: model.py(3): initialize",
        "second",
        "creating server: Internal - failed to load all models",
    ]
    assert TritonLog(log).last_errors(1) == ["creating server: Internal - failed to load all models"]
    assert TritonLog(tmp_path / "none").last_errors() == []


def test_supervisor_log_of_a_crash_is_told_by_what_the_runtime_said_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("the log of another server\n", encoding="utf-8")
    of_this = TritonLog(log)
    of_this.begin()
    assert of_this.last_lines() == []
    with log.open("a", encoding="utf-8") as file:
        file.write(
            'I1121 05:07:37.446358 28957 model_lifecycle.cc:472] "loading: core:1"\n'
            "terminate called after throwing an instance of 'boost::interprocess::lock_exception'\n"
            "  what():  boost::interprocess::lock_exception\n"
            "\nSignal (6) received.\n"
        )
    assert of_this.last_errors() == [
        "terminate called after throwing an instance of 'boost::interprocess::lock_exception'",
        "what(): boost::interprocess::lock_exception",
    ]
    assert of_this.last_lines(1) == ["Signal (6) received."]
    assert of_this.tells_of_transient_failure()
    assert TritonLog(None).tells_of_transient_failure() is None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_supervisor_how_a_stub_ended_is_said(server: ServerProcess, how: signal.Signals) -> None:
    watcher = supervisor(server, Status(), 60)
    pid = only_stub(server)
    watcher._check()
    os.kill(server.pid, signal.SIGSTOP)  # or it asks after the stub, as Triton does not
    os.kill(pid, how)
    with pytest.raises(ServerDiedError, match=rf"\(pid {pid}\) died \(killed by {how.name}\)") as caught:
        watcher.watch()
    assert caught.value.ready_s is None


def test_supervisor_a_server_that_dies_of_its_stubs_death_is_not_taken_for_the_cause(server: ServerProcess) -> None:
    watcher = supervisor(server, Status(), 60)
    pid = only_stub(server)
    watcher._check()
    os.kill(server.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    until_over = time.monotonic() + 60
    while not watcher._suspects:
        assert time.monotonic() < until_over
        watcher._check()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(ServerDiedError) as caught:
        watcher.watch()
    assert f"(pid {pid}) died (killed by SIGKILL); tritonserver died after it (killed by SIGKILL)" in str(caught.value)


def test_supervisor_a_death_for_lack_of_memory_is_called_that(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryKills, "have_happened", lambda _self: True)
    watcher = supervisor(server, Status(), 60)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(ServerDiedError, match=r"SIGKILL\); the kernel has ended .* for lack of memory") as caught:
        watcher.watch()
    assert caught.value.has_crashed


def test_supervisor_killing_returns_when_the_whole_group_has_gone(server: ServerProcess) -> None:
    pid = only_stub(server)
    server.kill()
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_supervisor_how_processes_end_in_words() -> None:
    assert [describe_ending(code) for code in (0, 70, -9, -40)] == [
        "exit status 0", "exit status 70", "killed by SIGKILL", "killed by signal 40",
    ]  # fmt: skip


def test_supervisor_a_stub_that_dies_while_it_loads_is_not_waited_for(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trident_tools.server.supervisor._CONFIRM_LOADING_S", 0.5)
    status = Status()
    monkeypatch.setattr(status, "is_ready", lambda: False)
    watcher = supervisor(server, status, 60)
    only_stub(server)
    watch = StubWatch(server.pid)
    watch.discover()
    stubs = watch.living()
    watcher._stubs.discover()
    os.kill(server.pid, signal.SIGSTOP)  # it takes no note of them, as Triton where a stub has not read its model
    for stub in stubs:
        os.kill(stub.pid, signal.SIGKILL)
    with pytest.raises(ServerDiedError, match=r"died while loading \(killed by SIGKILL\)") as caught:
        watcher.wait_until_ready()
    assert caught.value.has_crashed
    assert caught.value.ready_s is None


def test_supervisor_a_stub_that_triton_ended_itself_is_no_failure_of_loading(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trident_tools.server.supervisor._CONFIRM_LOADING_S", 0.2)
    status = Status()
    monkeypatch.setattr(status, "is_ready", lambda: False)
    assert not supervisor(server, status, 2).wait_until_ready()
