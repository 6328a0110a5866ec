"""The gateway beside a server: its deaths, its end, its command line, with processes that do as they are told."""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.child_processes import tied
from tests.fakes.serving import until
from tests.ports import free_ports
from trident_ensemble.contract.errors import ServerError, TridentError
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.settings import GatewaySettings
from trident_tools import serve
from trident_tools.building.preflight import check_gateway_ports
from trident_tools.server import gateway_command as commands
from trident_tools.server import gateway_keeper
from trident_tools.server.announcement import openai_announcement
from trident_tools.server.gateway_command import EXIT_CUT, GatewayListen, gateway_command, last_complaint
from trident_tools.server.gateway_keeper import GatewayKeeper, keep_gateway
from trident_tools.server.gateway_options import gateway_listen, passed_options
from trident_tools.server.signals import StopSignals
from trident_tools.server.triton_server import Listen

ROOT = Path(__file__).parents[3]
SERVER = Listen("127.0.0.1", 8000, 8001, 8002)
DOOR = GatewayListen("127.0.0.1", 8080, 8081)


class Told:
    """A process that ends when it is asked to, or never."""

    def __init__(self, stage: Stage, answers_term: int | None = 0) -> None:
        self._stage, self._answers_term = stage, answers_term
        self.status: int | None = None
        self.on_wait: Callable[[], None] = lambda: None

    def exit_status(self) -> int | None:
        return self.status

    def ask_to_stop(self) -> None:
        self._stage.events.append("asked to stop")
        if self.status is None:
            self.status = self._answers_term

    def wait(self, timeout_s: float) -> bool:
        if self.status is None:
            self._stage.now += timeout_s
        self.on_wait()
        return self.status is not None

    def kill(self) -> None:
        self._stage.events.append("killed")


class Stage:
    """A keeper, the processes that it starts, and a clock that is turned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[str] = []
        self.processes: list[Told] = []
        self.is_ready = False
        self.cannot_start = False
        self.answers_term: int | None = 0
        self.signals = StopSignals()
        self.keeper = GatewayKeeper(
            self._start,
            is_ready=lambda: self.is_ready,
            signals=self.signals,
            drain_delay_s=4,
            drain_timeout_s=10,
            last_words=lambda: "said why",
            announce=lambda: self.events.append("announced"),
            complain=self.events.append,
        )

    def _start(self) -> Told:
        if self.cannot_start:
            raise ServerError("no such program")
        self.events.append(f"started at {self.now:g}")
        self.processes.append(Told(self, self.answers_term))
        return self.processes[-1]

    def until(self, now: float) -> None:
        """Look after the gateway ten times a second."""
        while self.now < now - 1e-9:
            self.now = round(self.now + 0.1, 3)
            self.keeper.tend()

    def drain(self) -> None:
        """Drain as the command does, ten times a second."""
        self.keeper.begin_drain()
        if self.signals.count < 2:
            self.now += 4
        self.keeper.wait_until_refusing()
        while not self.keeper.has_drained():
            self.now += 0.1

    def is_ready_until(self, now: float) -> None:
        """End the readiness when the time has come."""
        self.is_ready = self.now < now

    @property
    def starts(self) -> list[float]:
        return [float(event.split()[-1]) for event in self.events if event.startswith("started at")]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(gateway_keeper, "time", SimpleNamespace(monotonic=lambda: stage.now))
    stage.keeper.start()
    return stage


def test_gateway_keeper_announces_once_that_it_is_ready(stage: Stage) -> None:
    stage.until(1)
    assert "announced" not in stage.events
    stage.is_ready = True
    stage.until(2)
    assert stage.events.count("announced") == 1
    assert stage.starts == [0]


def test_gateway_keeper_a_dead_gateway_is_started_again_after_longer_and_longer(stage: Stage) -> None:
    stage.is_ready = True
    stage.until(1)
    for _ in range(3):
        stage.processes[-1].status = -9
        stage.until(stage.now + 5)
    assert stage.starts == pytest.approx([0, 2.1, 8.1, 15.1], abs=0.11)
    told = [event for event in stage.events if "tritonserver goes on" in event]
    assert told[0] == (
        "the gateway ended (killed by SIGKILL)\ntritonserver goes on; starting the gateway again in 1 s."
    )
    assert [re.findall(r"in (\d+) s", event) for event in told] == [["1"], ["2"], ["4"]]
    assert stage.events.count("announced") == 1


def test_gateway_keeper_a_gateway_that_served_for_long_is_started_again_soon(stage: Stage) -> None:
    stage.is_ready = True
    for _ in range(3):
        stage.until(stage.now + 130)
        stage.processes[-1].status = 1
        stage.until(stage.now + 2)
    assert len(stage.starts) == 4
    assert all("in 1 s" in event for event in stage.events if "goes on" in event)


def test_gateway_keeper_one_that_cannot_be_started_again_is_tried_again(stage: Stage) -> None:
    stage.is_ready = True
    stage.until(1)
    stage.processes[-1].status, stage.cannot_start = -9, True
    stage.until(3)
    stage.cannot_start = False
    stage.until(6)
    assert len(stage.starts) == 2
    assert any(event.startswith("no such program\ntritonserver goes on") for event in stage.events)


def test_gateway_keeper_what_is_wrong_with_the_first_is_said_at_once(stage: Stage) -> None:
    stage.processes[-1].status = 1
    with pytest.raises(TridentError, match=r"exit status 1\): said why\n--no-openai") as raised:
        stage.until(1)
    assert not isinstance(raised.value, ServerError), "another tritonserver would not help"


def test_gateway_keeper_a_crash_before_it_is_ready_is_no_refusal(stage: Stage) -> None:
    stage.processes[-1].status = -11
    stage.until(3)
    assert len(stage.starts) == 2


@pytest.mark.parametrize(("status", "have_finished"), [(0, True), (EXIT_CUT, False), (1, True), (None, False)])
def test_gateway_keeper_drain_tells_whether_all_requests_finished(
    stage: Stage, status: int | None, have_finished: bool
) -> None:
    stage.processes[-1]._answers_term = status
    stage.drain()
    assert stage.keeper.has_cut is not have_finished
    assert stage.events[1:] == ["asked to stop", "killed"]
    assert stage.now <= 19.1
    stage.keeper.clean_up()
    assert stage.events[1:] == ["asked to stop", "killed"], "it has been seen to already"


def test_gateway_keeper_a_second_signal_ends_draining(stage: Stage) -> None:
    stage.processes[-1]._answers_term = None
    stage.signals.count = 2
    stage.drain()
    assert stage.keeper.has_cut
    assert stage.now < 3
    assert stage.events[1:] == ["asked to stop", "asked to stop", "killed"], "its clients are told, if it can"


def test_gateway_keeper_drain_begins_when_the_gateway_refuses_and_goes_on_without_it(stage: Stage) -> None:
    """The server refuses after the gateway, which has the clients' requests, and before the gateway ends."""
    process = stage.processes[-1]
    process._answers_term, process.on_wait, stage.is_ready = None, lambda: stage.is_ready_until(2.0), True
    stage.keeper.begin_drain()
    assert stage.now == 0
    stage.keeper.wait_until_refusing()
    assert 2 <= stage.now <= 3
    assert not stage.keeper.has_drained()
    process.status = 0
    assert stage.keeper.has_drained()
    assert not stage.keeper.has_cut
    assert stage.events[1:] == ["asked to stop", "killed"]


def test_gateway_keeper_drain_begins_also_if_the_gateway_goes_on_calling_itself_ready(stage: Stage) -> None:
    stage.processes[-1]._answers_term, stage.is_ready = None, True
    stage.keeper.begin_drain()
    stage.keeper.wait_until_refusing()
    assert 5 <= stage.now <= 6


def test_gateway_keeper_nothing_is_left_to_drain_between_two_gateways(stage: Stage) -> None:
    stage.is_ready = True
    stage.until(1)
    stage.processes[-1].status = -9
    stage.until(1.5)
    stage.drain()
    assert not stage.keeper.has_cut


def test_gateway_keeper_a_gateway_that_does_not_end_is_killed(stage: Stage) -> None:
    stage.processes[-1]._answers_term = None
    stage.keeper.clean_up()
    assert stage.events[1:] == ["asked to stop", "asked to stop", "killed"], "its clients are told, if it can"
    assert 3 <= stage.now <= 3.5
    stage.keeper.clean_up()
    assert stage.events.count("killed") == 1


def test_gateway_keeper_a_gateway_that_has_nothing_to_wait_for_is_asked_to_end_once(stage: Stage) -> None:
    stage.keeper.clean_up()
    assert stage.events[1:] == ["asked to stop", "killed"]
    assert stage.now == 0


STUBBORN = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1) if not asked else sys.exit())
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def test_gateway_keeper_a_gateway_in_its_delay_is_not_killed_at_the_end(tmp_path: Path) -> None:
    """With a delay, as in any container, a gateway ends only when it is asked twice."""
    path = tmp_path / "log"
    with path.open("wb") as log:
        keeper = keep_gateway(
            [sys.executable, "-c", STUBBORN],
            log,
            is_ready=lambda: False,
            signals=StopSignals(),
            drain_delay_s=15,
            drain_timeout_s=120,
            announce=lambda: None,
            complain=lambda _: None,
        )
        keeper.start()
        process = keeper._process
        assert process is not None
        until(lambda: path.read_text() == "ready\n", 60)
        keeper.clean_up()
    assert process.exit_status() == 0


def test_gateway_keeper_complains_with_the_words_of_the_real_process(tmp_path: Path) -> None:
    """Lines of tritonserver, of an earlier gateway and of the request log are not its words."""
    path = tmp_path / "log"
    path.write_text("trident gateway: of an earlier one\n")
    program = (
        "import sys; print('{\"id\": 1}'); print('E1128 triton'); sys.exit('trident gateway: --keys: no such file')"
    )
    with path.open("ab") as log:
        keeper = keep_gateway(
            [sys.executable, "-c", program],
            log,
            is_ready=lambda: False,
            signals=StopSignals(),
            drain_delay_s=0,
            drain_timeout_s=1,
            announce=lambda: None,
            complain=lambda _: None,
        )
        keeper.start()
        process = keeper._process
        assert process is not None
        assert process.wait(60)
        with pytest.raises(TridentError, match=r"exit status 1\): --keys: no such file\n"):
            keeper.tend()
    assert last_complaint(path, path.stat().st_size) == ""
    assert last_complaint(tmp_path / "none", 0) == ""


KEEPER = """
import sys, time
from trident_tools.server.gateway_keeper import keep_gateway
from trident_tools.server.signals import StopSignals

keeper = keep_gateway(
    [sys.executable, "-c", "import time; time.sleep(600)"], None, is_ready=bool, signals=StopSignals(),
    drain_delay_s=0, drain_timeout_s=1, announce=print, complain=print,
)
keeper.start()
print(keeper._process.pid, flush=True)
time.sleep(600)
"""


def test_gateway_keeper_that_is_killed_leaves_no_gateway() -> None:
    with subprocess.Popen(tied([sys.executable, "-c", KEEPER]), stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        status = Path(f"/proc/{int(keeper.stdout.readline())}/stat")
        assert status.exists()
        keeper.kill()
        keeper.wait()

    def has_ended() -> bool:
        try:
            return status.read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:  # it is no more
            return True

    until(has_ended, 60)


def test_gateway_command_names_server_and_ports() -> None:
    server, times = Listen("::", 1, 2, 3), {"drain_delay_s": 15.0, "drain_timeout_s": 30.0}
    words = gateway_command(DOOR, server, ["--max-n=8", "--drain-delay=9"], **times, logs_requests=True)
    assert words[3:] == [
        "gateway",
        "--max-n=8",
        "--drain-delay=9",
        "--server=http://[::1]:1",
        "--metrics-url=http://[::1]:3",
        "--host=127.0.0.1",
        "--port=8080",
        "--private-port=8081",
        "--drain-delay=15",
        "--drain-timeout=30",
    ]
    assert "--quiet" in gateway_command(DOOR, server, [], **times, logs_requests=False)


@pytest.mark.parametrize(
    ("words", "logs_requests"),
    [([], False), (["--verbose"], True), (["--log-file", "log"], True), (["--quiet"], False)],
)
def test_gateway_command_logs_requests_where_somebody_keeps_the_log(
    words: list[str], logs_requests: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary log would grow with every request, and go when the command ends well."""

    class ToldError(Exception):
        pass

    def keep(command: list[str], *_: object, **__: object) -> GatewayKeeper:
        assert ("--quiet" not in command) is logs_requests
        raise ToldError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "check_repository", lambda _: {})
    monkeypatch.setattr(serve, "_starter", lambda *_, **__: None)
    monkeypatch.setattr(serve, "check_gateway_ports", lambda *_: None)
    monkeypatch.setattr(serve, "keep_gateway", keep)
    with pytest.raises(ToldError):
        serve.run(_options(*words))


def test_gateway_command_needs_what_its_extra_installs() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    [extra] = re.findall(r"^gateway = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    installed = re.findall(r'"([a-z-]+)', extra)
    modules = {name.replace("-", "_").replace("pyjwt", "jwt") for name in installed}
    assert set(commands.NEEDED_MODULES) == modules


def _options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(["--repository", "unread", *words])


def test_serve_and_its_gateway_drain_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same defaults, and the gateway of `trident serve` is told what `trident serve` has."""
    alone = GatewaySettings()
    assert (serve.DRAIN_DELAY_S, _options().drain_timeout) == (alone.drain_delay_s, alone.drain_timeout_s)

    told: list[tuple[float, float, list[str]]] = []

    def keep(command: list[str], *_: object, drain_delay_s: float, drain_timeout_s: float, **__: object) -> None:
        told.append((drain_delay_s, drain_timeout_s, command[-2:]))
        raise ServerError("told")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "check_repository", lambda _: {})
    monkeypatch.setattr(serve, "_starter", lambda *_, **__: None)
    monkeypatch.setattr(serve, "check_gateway_ports", lambda *_: None)
    monkeypatch.setattr(serve, "keep_gateway", keep)
    for is_container, words in ((True, []), (False, []), (True, ["--drain-delay", "3", "--drain-timeout", "7"])):
        monkeypatch.setattr(serve, "runs_in_container", lambda _, there=is_container: there)
        with pytest.raises(ServerError, match="told"):
            serve.run(_options(*words))
    assert told == [
        (15, 120, ["--drain-delay=15", "--drain-timeout=120"]),
        (0, 120, ["--drain-delay=0", "--drain-timeout=120"]),
        (3, 7, ["--drain-delay=3", "--drain-timeout=7"]),
    ]


@pytest.mark.parametrize("words", [("--drain-delay", "-1"), ("--drain-timeout", "nan"), ("--drain-delay", "inf")])
def test_serve_refuses_times_that_are_none(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _options(*words)
    assert f"argument {words[0]}: {words[1]} is not a number of seconds" in capsys.readouterr().err


def _listen(*words: str) -> tuple[GatewayListen | None, list[str]]:
    said: list[str] = []
    return gateway_listen(_options(*words), said.append), said


def test_gateway_options_have_their_defaults_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_tools.server.gateway_options.missing_module", lambda: None)
    assert _listen() == (DOOR, [])
    words = ("--openai-port", "1", "--openai-host", "::1", "--openai-private-port", "2")
    assert _listen(*words) == (GatewayListen("::1", 1, 2), [])
    assert _listen("--no-openai") == (None, [])
    args = _options("--keys", "keys.json", "--gateway-option=--max-n=8", "--gateway-option=--share-prefix-cache")
    assert passed_options(args) == ["--keys=keys.json", "--max-n=8", "--share-prefix-cache"]


@pytest.mark.parametrize(
    "words", [("--openai-port", "1"), ("--keys", "k"), ("--openai-host", "::1"), ("--gateway-option=--max-n=8",)]
)
def test_gateway_options_contradict_no_openai(words: Sequence[str]) -> None:
    with pytest.raises(ServerError, match=f"{words[0].partition('=')[0]}: .*--no-openai"):
        _listen("--no-openai", *words)


def test_gateway_options_without_its_packages_only_what_was_asked_for_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trident_tools.server.gateway_options.missing_module", lambda: "uvloop")
    listen, said = _listen()
    assert listen is None
    assert said == ["Without OpenAI's API: uvloop is not installed: pip install 'trident-llm[gateway]'"]
    with pytest.raises(ServerError, match="--openai-port: uvloop is not installed"):
        _listen("--openai-port", "8080")
    assert _listen("--no-openai") == (None, [])


def test_gateway_ports_are_checked_by_option() -> None:
    taken, private, http, grpc, metrics = free_ports(5)
    server = Listen("127.0.0.1", http, grpc, metrics)
    check_gateway_ports(GatewayListen("127.0.0.1", taken, private), server)
    with pytest.raises(ServerError, match="--openai-private-port must differ"):
        check_gateway_ports(GatewayListen("127.0.0.1", http, private), server)
    with pytest.raises(ServerError, match="--openai-private-port 0: must be between"):
        check_gateway_ports(GatewayListen("127.0.0.1", taken, 0), server)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        with pytest.raises(ServerError, match=f"--openai-port {taken}: cannot listen .*--no-openai"):
            check_gateway_ports(GatewayListen("127.0.0.1", taken, private), server)
        with pytest.raises(ServerError, match=f"--openai-private-port {taken}: cannot listen"):
            check_gateway_ports(GatewayListen("127.0.0.1", private, taken), server)


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("options", [[], ["--keys=k"], ["--tls-cert=c", "--tls-key=k"]])
def test_gateway_announcement_is_a_curl_line_and_three_lines_of_python(options: list[str], is_chat: bool) -> None:
    card = ModelCard("my/model", 0, 64, takes_messages=is_chat)
    lines = openai_announcement(GatewayListen("0.0.0.0", 80, 81), card, options).splitlines()  # noqa: S104
    scheme = "https" if "--tls-cert=c" in options else "http"
    assert lines[0] == f"OpenAI's API: {scheme}://localhost:80/v1"
    assert ("chat/completions" in lines[1]) is is_chat
    assert ("OPENAI_API_KEY" in lines[1]) is (options == ["--keys=k"])
    program = "\n".join(line.strip() for line in lines[-3:])
    compile(program, "announcement", "exec")
    assert program.startswith("from openai import OpenAI\n")
    assert "model='my/model'" in program
