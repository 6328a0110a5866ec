"""How benchmarks end: told to, killed, or refused; none of it measures anything."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from tests.benchmarks.commands import BenchmarkError, require_requests, run_trident
from tests.benchmarks.soak import MIN_SAMPLES, judge_memory
from tests.e2e import server

_SECONDS = 30

_STARTS_A_CHILD = """
import subprocess, time
from tests.child_processes import tied
print(subprocess.Popen(tied(["sleep", "600"]), start_new_session=True).pid, flush=True)
time.sleep(600)
"""
_WORKS_IN_A_FOLDER = """
import time
from tests.benchmarks.commands import work_folder
with work_folder() as work:
    (work / "checkpoint").touch()
    print(work, flush=True)
    time.sleep(600)
"""
_IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def _python(code: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start Python in a session of its own; return it and the first line that it prints."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


def test_commands_a_server_does_not_outlive_a_benchmark_that_is_killed() -> None:
    parent, pid = _python(_STARTS_A_CHILD)
    child = Path("/proc", pid, "stat")
    try:
        assert _runs(child)
        parent.kill()
        parent.wait(_SECONDS)
        deadline = time.monotonic() + _SECONDS
        while _runs(child):
            assert time.monotonic() < deadline, "the child has outlived its parent"
            time.sleep(0.02)
    finally:
        if _runs(child):
            os.kill(int(pid), signal.SIGKILL)
        parent.communicate()


def _runs(stat: Path) -> bool:
    """Whether a process still runs; one that has ended may stay until somebody asks for its status."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_commands_a_benchmark_told_to_end_removes_its_folder(number: signal.Signals) -> None:
    process, name = _python(_WORKS_IN_A_FOLDER)
    assert Path(name, "checkpoint").exists()
    process.send_signal(number)
    process.communicate(timeout=_SECONDS)
    assert process.returncode == 128 + number
    assert not Path(name).exists()


def test_commands_a_server_is_killed_when_waiting_for_its_end_is_interrupted() -> None:
    process, _ = _python(_IGNORES_SIGTERM)
    previous = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.stop(process)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert process.returncode == -signal.SIGKILL
    process.communicate(timeout=_SECONDS)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def test_commands_a_command_that_failed_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchmarkError, match="trident bench has failed: exit status 2"):
        run_trident("bench", ["--users", "0"], tmp_path / "bench.json", _SECONDS)
    assert "--users" in capfd.readouterr().err, "the command has said why"


def test_commands_a_stage_without_answers_gives_no_figures() -> None:
    answered = {"load": {"users": 4}, "requests": 9, "errors": {}}
    require_requests([answered])
    with pytest.raises(BenchmarkError, match=r"under users 1 .*--duration"):
        require_requests([answered, {"load": {"users": 1}, "requests": 0, "errors": {}}])
    with pytest.raises(BenchmarkError, match="UNAVAILABLE"):
        require_requests([{"load": {"users": 1}, "requests": 0, "errors": {"[UNAVAILABLE] full": 3}}])


@pytest.mark.parametrize("num_samples", [0, 1, 2, MIN_SAMPLES - 1])
def test_commands_memory_of_a_short_soak_is_not_judged(num_samples: int) -> None:
    has_grown, said = judge_memory([100.0 * (1 + number) for number in range(num_samples)])
    assert not has_grown
    assert "not judged" in said
    assert "--minutes" in said


def test_commands_memory_of_a_long_soak_is_judged() -> None:
    start = [500.0] * (MIN_SAMPLES // 4)
    assert not judge_memory([*start, *[1000.0] * MIN_SAMPLES])[0], "what it takes at first does not count"
    assert judge_memory([1000.0 + 20 * number for number in range(MIN_SAMPLES)])[0]


@pytest.mark.parametrize(
    ("benchmark_name", "arguments"),
    [
        ("answering", ["--open", "0"]), ("answering", ["--rounds", "0"]), ("detokenizing", ["--rounds", "0"]),
        ("digests", ["--gib", "0"]), ("digests", ["--rounds", "0"]), ("guided", ["--rounds", "0"]),
        ("guided", ["--tokens", "0"]), ("load", ["--users", "1,0"]), ("load", ["--duration", "0"]),
        ("load", ["--ramp", "-1"]), ("loop_costs", ["--rounds", "0"]), ("loop_costs", ["--only", "nothing"]),
        ("sampling", ["--rounds", "0"]), ("sampling", ["--sequences", "0"]), ("sampling", ["--step-ms", "0"]),
        ("sampling", ["--only", "nothing"]), ("scheduling", ["--rounds", "0"]), ("soak", ["--minutes", "0"]),
        ("soak", ["--clients", "0"]), ("validate_simulation", ["--users", "one"]),
        ("validate_simulation", ["--duration", "nan"]), ("validate_simulation", ["--output-tokens", "many"]),
    ],
)  # fmt: skip
def test_commands_what_cannot_be_measured_is_refused_by_name(
    benchmark_name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = importlib.import_module(f"tests.benchmarks.{benchmark_name}")
    monkeypatch.setattr(sys, "argv", [benchmark_name, *arguments])
    with pytest.raises(SystemExit) as left:
        benchmark.main()
    assert left.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
