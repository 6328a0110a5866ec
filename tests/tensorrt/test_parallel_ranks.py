"""The leader and its ranks, as real processes: they step together, and fall together, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backend.test_artifact import MANIFEST
from tests.tensorrt.double import communicators
from tests.tensorrt.rank_double import CUE, load_well
from trident_backend.engine.artifact import write_manifest
from trident_backend.engine.protocol import StepBatch
from trident_backend.engine.tensorrt import nccl
from trident_backend.engine.tensorrt.parallel import ParallelEngine, load_leader
from trident_ensemble.errors import ArtifactError, EngineError, EngineLostError

_ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nccl.core", communicators)
    monkeypatch.syspath_prepend(str(_ROOT))


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    before = children(os.getpid())
    yield
    assert gone(lambda: children(os.getpid()) == before), "processes are left"


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def gone(is_over: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not is_over() and time.monotonic() < end:
        time.sleep(0.02)
    return is_over()


def lead(folder: Path, num_ranks: int = 2, conduct: str = "well") -> ParallelEngine:
    manifest = replace(MANIFEST, tensor_parallel=num_ranks)
    write_manifest(folder, manifest)
    command = (sys.executable, "-m", "tests.tensorrt.rank_double", conduct)
    return load_leader(folder, manifest, range(num_ranks), load_well, command)


def step(*token_ids: int) -> StepBatch:
    ids = np.array(token_ids, np.int32)
    none = np.zeros(1, np.int32)
    return StepBatch(ids, none, none, none, none, none, max_context_len=1, logit_rows=none)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_all_ranks_compute_every_step(num_ranks: int, tmp_path: Path) -> None:
    engine = lead(tmp_path, num_ranks)
    factors = num_ranks * (num_ranks + 1) // 2
    for number in range(50):
        logits: Any = engine.execute(step(number, 3))
        assert logits.item() == (number + 3) * factors
    assert len(children(os.getpid())) == num_ranks - 1
    engine.close()


@pytest.mark.parametrize(
    ("conduct", "problem"),
    [
        ("is killed", r"rank 1 \(GPU 1\) ended with signal SIGKILL; it said last: these are \| my last words"),
        ("fails", r"rank 1 \(GPU 1\): cudaGraphLaunch failed"),
        ("breaks", r"rank 1 \(GPU 1\): IndexError\('a defect'\)"),
    ],
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_rank_that_falls_in_a_step_ends_the_engine(
    conduct: str, problem: str, num_ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = lead(tmp_path, num_ranks, conduct)
    engine.execute(step(1))
    for _ in range(2):
        with pytest.raises(EngineLostError, match=problem):
            engine.execute(step(CUE))
    if conduct == "is killed":
        assert "rank 1 (GPU 1): my last words" in capfd.readouterr().err
    engine.close()


def test_a_rank_killed_between_steps_ends_the_engine(tmp_path: Path) -> None:
    engine = lead(tmp_path)
    engine.execute(step(1))
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGKILL)
    assert gone(lambda: engine._ranks.has_failed)
    with pytest.raises(EngineLostError, match="SIGKILL"):
        engine.execute(step(2))
    engine.close()


def test_a_leader_that_fails_takes_its_ranks_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = lead(tmp_path, 3)

    def fail(_batch: StepBatch) -> None:
        raise EngineError("cudaMemcpyAsync failed")

    monkeypatch.setattr(engine._part, "execute", fail)
    with pytest.raises(EngineLostError, match="rank 0: cudaMemcpyAsync failed"):
        engine.execute(step(1))
    assert gone(lambda: not any(is_running(pid) for pid in children(os.getpid())))
    engine.close()


@pytest.mark.parametrize(
    ("conduct", "problem"),
    [
        (
            "cannot begin",
            r"rank . \(GPU .\) ended with exit status 1; it said last: .*No module named 'tensorrt'",
        ),
        ("has no room", r"rank 1 \(GPU 1\): GPU 1 has 0.50 GiB"),
        ("dies in the first run", r"rank 1 \(GPU 1\) ended with exit status 5"),
        ("talks nonsense", r"rank . \(GPU .\): what came is no message"),
    ],
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_rank_that_cannot_start_is_named(conduct: str, problem: str, num_ranks: int, tmp_path: Path) -> None:
    with pytest.raises(EngineLostError, match=problem):
        lead(tmp_path, num_ranks, conduct)


def test_a_leader_that_cannot_load_says_so_and_leaves_nobody(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, tensor_parallel=2)
    write_manifest(tmp_path, manifest)

    def refuse(*_arguments: Any) -> Any:
        raise ArtifactError("compiler.target: the plan was built for sm_90")

    with pytest.raises(ArtifactError, match="sm_90"):
        load_leader(tmp_path, manifest, [0, 1], refuse, (sys.executable, "-m", "tests.tensorrt.rank_double", "well"))


def test_a_command_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"rank 1 \(GPU 1\) cannot be started"):
        load_leader(tmp_path, replace(MANIFEST, tensor_parallel=2), [0, 1], load_well, ["/nowhere/python"])


def test_closing_ends_a_rank_that_hangs(tmp_path: Path) -> None:
    engine = lead(tmp_path, 2, "hangs")
    caught: list[BaseException] = []

    def run() -> None:
        try:
            engine.execute(step(CUE))
        except EngineLostError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    (pid,) = children(os.getpid())
    engine._ranks.fail("rank 0: told to")
    assert gone(lambda: not is_running(pid), 5)
    thread.join(5)
    assert "told to" in str(caught[0])
    engine.close()


def test_missing_bindings_of_nccl_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nccl.core", None)
    for call in (nccl.make_unique_id, lambda: nccl.join(2, 0, bytes(128))):
        with pytest.raises(ArtifactError, match=r"tensor_parallel: .*pip install nccl4py nvidia-nccl-cu13"):
            call()


def test_what_nccl_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("UnhandledCudaError (1): unhandled cuda error")

    monkeypatch.setattr(communicators, "get_unique_id", fail)
    with pytest.raises(EngineError, match=r"NCCL: get_unique_id failed: UnhandledCudaError \(1\)"):
        nccl.make_unique_id()


_LEADER = """
    import sys, time
    from pathlib import Path
    from tests.tensorrt.double import communicators
    sys.modules["nccl.core"] = communicators
    from tests.tensorrt.rank_double import CUE
    from tests.tensorrt.test_parallel_ranks import lead, step
    engine = lead(Path(sys.argv[1]), 3, sys.argv[2])
    engine.execute(step(1))
    print("ready", flush=True)
    engine.execute(step(CUE)) if sys.argv[2] == "hangs" else time.sleep(600)
"""


@pytest.mark.parametrize("conduct", ["well", "hangs"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_never_outlive_their_leader(conduct: str, how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_LEADER), str(tmp_path), conduct]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        ranks = children(leader.pid)
        assert len(ranks) == 2
        leader.send_signal(how)
        leader.wait()
        assert gone(lambda: not any(is_running(pid) for pid in ranks), 5)


def test_ctrl_c_is_the_leaders_business(tmp_path: Path) -> None:
    engine = lead(tmp_path)
    (pid,) = children(os.getpid())
    for which in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, which)
    for _ in range(3):
        engine.execute(step(1))
    engine.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
