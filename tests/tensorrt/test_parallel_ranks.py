"""The leader and its ranks, as real processes: they step together, and fall together, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ensemble.contract.test_manifest import MANIFEST
from tests.fakes.rank import CUE, load_well
from tests.tensorrt.double import communicators
from tests.tensorrt.rank_processes import LIMIT_S, Call, is_running, limited, no_ranks_left, pids, ranks_of, until
from trident_backend.engine.protocol import StepBatch, execute
from trident_backend.engine.tensorrt import nccl, parallel
from trident_backend.engine.tensorrt.parallel import ParallelEngine, load_leader
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, EngineError, EngineLostError
from trident_ensemble.contract.manifest import write_manifest

_ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nccl.core", communicators)
    monkeypatch.syspath_prepend(str(_ROOT))


@pytest.fixture(autouse=True)
def no_orphans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parallel, "_CLOSE_S", LIMIT_S)  # a busy machine takes more than what is fair on a GPU's
    with no_ranks_left():
        yield


def lead(folder: Path, num_ranks: int = 2, conduct: str = "well") -> ParallelEngine:
    manifest = replace(MANIFEST, tensor_parallel=num_ranks)
    write_manifest(folder, manifest)
    command = (sys.executable, "-m", "tests.fakes.rank", conduct)
    return load_leader(folder, manifest, range(num_ranks), load_well, command)


@contextmanager
def led(folder: Path, num_ranks: int = 2, conduct: str = "well") -> Iterator[ParallelEngine]:
    """An engine that is closed whatever happens, in a limited time."""
    engine = limited(lambda: lead(folder, num_ranks, conduct))
    try:
        yield engine
    finally:
        if not engine._ranks._is_over:  # the test has not closed it
            limited(engine.close)


def run(engine: ParallelEngine, *token_ids: int) -> Any:
    return limited(lambda: execute(engine, step(*token_ids)))


def step(*token_ids: int) -> StepBatch:
    ids = np.array(token_ids, np.int32)
    none = np.zeros(1, np.int32)
    return StepBatch(ids, none, none, none, none, none, max_context_len=1, logit_rows=none)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_parallel_ranks_all_ranks_compute_every_step(num_ranks: int, tmp_path: Path) -> None:
    with led(tmp_path, num_ranks) as engine:
        factors = num_ranks * (num_ranks + 1) // 2
        for number in range(50):
            assert run(engine, number, 3).item() == (number + 3) * factors
        assert ranks_of(os.getpid()) >= set(pids(engine))
        assert len(pids(engine)) == num_ranks - 1
    assert [rank.process.returncode for rank in engine._ranks._reached] == [0] * (num_ranks - 1)


@pytest.mark.parametrize(
    ("conduct", "problem"),
    [
        ("is killed", r"rank 1 \(GPU 1\) ended with signal SIGKILL; it said last: these are \| my last words"),
        ("fails", r"rank 1 \(GPU 1\): cudaGraphLaunch failed"),
        ("breaks", r"rank 1 \(GPU 1\): IndexError\('a defect'\)"),
    ],
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_parallel_ranks_a_rank_that_falls_in_a_step_ends_the_engine(
    conduct: str, problem: str, num_ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with led(tmp_path, num_ranks, conduct) as engine:
        run(engine, 1)
        for _ in range(2):
            with pytest.raises(EngineLostError, match=problem):
                run(engine, CUE)
    if conduct == "is killed":
        assert "rank 1 (GPU 1): my last words" in capfd.readouterr().err


def test_parallel_ranks_a_rank_killed_between_steps_ends_the_engine(tmp_path: Path) -> None:
    with led(tmp_path) as engine:
        run(engine, 1)
        os.kill(pids(engine)[0], signal.SIGKILL)
        assert until(lambda: engine._ranks.has_failed)
        with pytest.raises(EngineLostError, match="SIGKILL"):
            run(engine, 2)


def test_parallel_ranks_a_leader_that_fails_takes_its_ranks_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise EngineError("cudaMemcpyAsync failed")

    monkeypatch.setattr(parallel, "_CLOSE_FAILED_S", 600.0)
    with led(tmp_path, 3) as engine:
        monkeypatch.setattr(engine._part, "collect", fail)
        with pytest.raises(EngineLostError, match="rank 0: cudaMemcpyAsync failed"):
            run(engine, 1)
        assert until(lambda: not any(map(is_running, pids(engine))))
        limited(engine.close)  # the communicator would wait for them


def test_parallel_ranks_who_waits_for_a_rank_that_is_gone_hears_of_it_at_once(tmp_path: Path) -> None:
    with led(tmp_path, 2, "hangs") as engine:
        waiting = Call(lambda: execute(engine, step(CUE)))
        time.sleep(0.3)
        assert waiting.is_running()
        began = time.monotonic()
        os.kill(pids(engine)[0], signal.SIGKILL)
        with pytest.raises(EngineLostError, match="SIGKILL"):
            waiting.outcome()
        assert time.monotonic() - began < 30
        # The GPU still waits, and nothing can be freed.
        began = time.monotonic()
        limited(engine.close)
        assert time.monotonic() - began < 30


def test_parallel_ranks_a_process_that_does_not_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_timeout: float) -> int:
        time.sleep(_timeout)
        raise subprocess.TimeoutExpired("a rank", _timeout)

    with led(tmp_path) as engine:
        (rank,) = engine._ranks._reached
        with monkeypatch.context() as patch:
            patch.setattr(rank.process, "wait", wait)
            os.kill(rank.process.pid, signal.SIGKILL)
            with pytest.raises(EngineLostError, match=r"rank 1 \(GPU 1\) is gone, but its process does not end"):
                limited(lambda: execute(engine, step(1)))


@pytest.mark.parametrize("conduct", ["stops in closing", "dies in closing", "fails in closing"])
def test_parallel_ranks_a_rank_that_does_not_close_well_is_not_waited_for(
    conduct: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_CLOSE_S", 1.0)
    with led(tmp_path, 3, conduct) as engine:
        run(engine, 1)
        began = time.monotonic()
        limited(engine.close)
        assert time.monotonic() - began < 30
        assert not any(map(is_running, pids(engine)))


def test_parallel_ranks_a_rank_imports_nothing_from_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "queue", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "engine").mkdir()
    with led(Path("engine")) as engine:  # whose place each rank must find, too
        assert run(engine, 1, 2).item() == 9
        (pid,) = pids(engine)
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        # Python before 3.11 does not know it, and imports from there.
        assert b"PYTHONSAFEPATH=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


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
def test_parallel_ranks_a_rank_that_cannot_start_is_named(
    conduct: str, problem: str, num_ranks: int, tmp_path: Path
) -> None:
    with pytest.raises(EngineLostError, match=problem):
        limited(lambda: lead(tmp_path, num_ranks, conduct))


@pytest.mark.parametrize(
    ("num_ranks", "conduct", "problem"),
    [
        (3, "stops in loading", r"^rank 1 \(GPU 1\) did not load within 8 s"),
        (
            2, "hangs in joining",
            r"^rank 0 \(GPU 0\) and rank 1 \(GPU 1\) did not become ready for steps within 8 s; one of them hangs",
        ),
        (2, "hangs when it is loaded", r"^rank 1 \(GPU 1\) did not become ready for steps within 8 s"),
    ],
)  # fmt: skip
def test_parallel_ranks_a_rank_that_hangs_while_it_loads_is_not_waited_for(
    num_ranks: int, conduct: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_LOADING_S", 8.0)
    monkeypatch.setattr(parallel, "_LOADING_GRACE_S", 0.5)
    before = ranks_of(os.getpid())
    with pytest.raises(EngineLostError, match=problem):
        limited(lambda: lead(tmp_path, num_ranks, conduct))
    assert not any(map(is_running, ranks_of(os.getpid()) - before))


def test_parallel_ranks_a_leader_that_hangs_while_it_loads_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_LOADING_S", 1.0)
    monkeypatch.setattr(parallel, "_LOADING_GRACE_S", 0.2)
    manifest = replace(MANIFEST, tensor_parallel=2)
    write_manifest(tmp_path, manifest)
    over = threading.Event()

    def hang(*_arguments: Any) -> Any:
        over.wait(LIMIT_S)

    command = (sys.executable, "-m", "tests.fakes.rank", "well")
    with pytest.raises(EngineLostError, match=r"^rank 0 \(GPU 4\) did not load within 1 s"):
        limited(lambda: load_leader(tmp_path, manifest, [4, 5], hang, command))
    over.set()


def test_parallel_ranks_the_time_for_loading_grows_with_the_plans(tmp_path: Path) -> None:
    assert parallel._loading_limit_s(tmp_path, 2) == 300
    for rank in range(2):
        with (tmp_path / layout.plan_file(rank, 2)).open("wb") as plan:
            plan.truncate(8_000_000_000)  # sparse
    assert parallel._loading_limit_s(tmp_path, 2) == 300 + 320


def test_parallel_ranks_a_rank_that_hangs_in_a_step_ends_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with led(tmp_path, 2, "hangs") as engine:
        run(engine, 1)
        monkeypatch.setattr(parallel, "_STEP_S", 1.0)
        with pytest.raises(EngineLostError, match=r"rank 0: the GPU has not come back for 1 s"):
            run(engine, CUE)
        assert until(lambda: not any(map(is_running, pids(engine))), 60)


def test_parallel_ranks_a_leader_that_cannot_load_says_so_and_leaves_nobody(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, tensor_parallel=2)
    write_manifest(tmp_path, manifest)

    def refuse(*_arguments: Any) -> Any:
        raise ArtifactError("compiler.target: the plan was built for sm_90")

    command = (sys.executable, "-m", "tests.fakes.rank", "well")
    with pytest.raises(ArtifactError, match="sm_90"):
        limited(lambda: load_leader(tmp_path, manifest, [0, 1], refuse, command))


def test_parallel_ranks_a_command_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"rank 1 \(GPU 1\) cannot be started"):
        load_leader(tmp_path, replace(MANIFEST, tensor_parallel=2), [0, 1], load_well, ["/nowhere/python"])


def test_parallel_ranks_closing_ends_a_rank_that_hangs(tmp_path: Path) -> None:
    with led(tmp_path, 2, "hangs") as engine:
        waiting = Call(lambda: execute(engine, step(CUE)))
        time.sleep(0.3)
        (pid,) = pids(engine)
        engine._ranks.fail("rank 0: told to")
        assert until(lambda: not is_running(pid), 60)
        with pytest.raises(EngineLostError, match="told to"):
            waiting.outcome()


def test_parallel_ranks_missing_bindings_of_nccl_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nccl.core", None)
    for call in (nccl.make_unique_id, lambda: nccl.join(2, 0, bytes(128))):
        with pytest.raises(ArtifactError, match=r"tensor_parallel: .*pip install nccl4py nvidia-nccl-cu13"):
            call()


def test_parallel_ranks_what_nccl_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
    from tests.fakes.rank import CUE
    from tests.tensorrt.test_parallel_ranks import lead, step
    from trident_backend.engine.protocol import execute
    engine = lead(Path(sys.argv[1]), 3, sys.argv[2])
    execute(engine, step(1))
    print("ready", flush=True)
    execute(engine, step(CUE)) if sys.argv[2] == "hangs" else time.sleep(600)
"""


@pytest.mark.parametrize("conduct", ["well", "hangs"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_parallel_ranks_ranks_never_outlive_their_leader(conduct: str, how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_LEADER), str(tmp_path), conduct]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        try:
            assert limited(leader.stdout.readline, 300) == "ready\n"
            ranks = ranks_of(leader.pid)
            assert len(ranks) == 2
            leader.send_signal(how)
            leader.wait(60)
            assert until(lambda: not any(map(is_running, ranks)), 60)
        finally:
            leader.kill()


def test_parallel_ranks_ctrl_c_is_the_leaders_business(tmp_path: Path) -> None:
    with led(tmp_path) as engine:
        for which in (signal.SIGINT, signal.SIGTERM):
            os.kill(pids(engine)[0], which)
        for _ in range(3):
            run(engine, 1)
