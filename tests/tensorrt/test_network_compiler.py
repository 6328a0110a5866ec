"""Compiling a network with TensorRT: progress, Ctrl-C, refusals in its words, and plans that cannot be written."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tensorrt.test_plans import ADA, AMPERE, MAGIC
from trident_compiler.tensorrt.builder import NetworkCompiler, ShapeRange
from trident_compiler.tensorrt.progress_monitor import NestedShares
from trident_ensemble.contract.errors import BuildError

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")


def chain(compiler: NetworkCompiler, length: int) -> tuple[Any, dict[str, ShapeRange], list[np.ndarray[Any, Any]]]:
    """A network of so many products; the arrays are its constants."""
    network = compiler.network()
    value = network.add_input("x", trt.float16, (-1, 64))
    arrays = [np.eye(64, dtype=np.float16) for _ in range(length)]
    for array in arrays:
        matrix = network.add_constant((64, 64), trt.Weights(array)).get_output(0)
        plain = trt.MatrixOperation.NONE
        value = network.add_matrix_multiply(value, plain, matrix, plain).get_output(0)
    network.mark_output(value)
    return network, {"x": ShapeRange((1, 64), (8, 64), (8, 64))}, arrays


def test_network_compiler_ctrl_c_ends_a_build_at_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = NetworkCompiler(trt, ADA, None)
    steps: list[str] = []

    class Counted(NestedShares):
        def step(self, name: str, num_done: int) -> float:
            steps.append(name)
            return super().step(name, num_done)

    monkeypatch.setattr("trident_compiler.tensorrt.progress_monitor.NestedShares", Counted)
    network, profile, kept = chain(compiler, 40)
    full: list[float] = []
    compiler.compile(network, [profile], tmp_path / "whole.plan", full.append)
    assert full[-1] == 1
    num_steps = len(steps)
    steps.clear()
    shares: list[float] = []

    def interrupted(share: float) -> None:
        shares.append(share)
        if len(shares) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        # As in a long build, of which the main thread sees more than one report.
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        compiler.compile(network, [profile], tmp_path / "gone.plan", interrupted)
    assert 5 <= len(shares) < len(full) // 2
    assert len(steps) < num_steps // 2
    assert shares[-1] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole.plan"]
    compiler.compile(network, [profile], tmp_path / "again.plan")
    assert (tmp_path / "again.plan").read_bytes().startswith(MAGIC)
    assert len(kept) == 40


def test_network_compiler_what_tensorrt_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    compiler = NetworkCompiler(trt, ADA, None)
    network, profile, _ = chain(compiler, 1)
    with pytest.raises(BuildError, match=r"TensorRT .*profile"):
        compiler.compile(network, [{**profile, "x": ShapeRange((8, 64), (4, 64), (2, 64))}], tmp_path / "x.plan")
    with pytest.raises(BuildError, match=r"TensorRT cannot build the network: .*[Oo]ptimization profile"):
        compiler.compile(network, [], tmp_path / "x.plan")
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 1 << 14])
def test_network_compiler_a_plan_that_does_not_fit_on_the_disk_is_no_plan(tmp_path: Path, num_bytes: int) -> None:
    compiler = NetworkCompiler(trt, ADA, None)
    network, profile, kept = chain(compiler, 4)
    with (
        files_of_at_most(num_bytes),
        pytest.raises(BuildError, match=r"^x\.plan: cannot be written: .*File too large"),
    ):
        compiler.compile(network, [profile], tmp_path / "x.plan")
    assert not list(tmp_path.iterdir())
    compiler.compile(network, [profile], tmp_path / "x.plan")
    assert len(kept) == 4


def test_network_compiler_a_plan_in_no_folder_is_refused(tmp_path: Path) -> None:
    compiler = NetworkCompiler(trt, ADA, None)
    network, profile, kept = chain(compiler, 1)
    with pytest.raises(BuildError, match=r"^x\.plan: cannot be written: .*No such file"):
        compiler.compile(network, [profile], tmp_path / "gone" / "x.plan")
    assert len(kept) == 1


class Flawed:
    """A file that fails: when it is written to, when it is closed, or by losing what it was given."""

    def __init__(self, fails: str) -> None:
        self._fails = fails

    def __enter__(self) -> Flawed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fails == "close":
            raise OSError(5, "Input/output error")

    def write(self, piece: bytes) -> int:
        if self._fails == "write":
            raise OSError(28, "No space left on device")
        return len(piece)


@pytest.mark.parametrize(("fails", "words"), [("write", "No space left"), ("close", "Input/output"), ("", "0 of its")])
def test_network_compiler_a_failed_write_is_never_taken_for_success(
    tmp_path: Path, fails: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = NetworkCompiler(trt, ADA, None)
    network, profile, kept = chain(compiler, 1)
    path = tmp_path / "x.plan"
    path.touch()
    monkeypatch.setattr(Path, "open", lambda *_: Flawed(fails))
    with pytest.raises(BuildError, match=rf"^x\.plan: cannot be written: .*{words}"):
        compiler.compile(network, [profile], path)
    assert not path.exists()
    assert len(kept) == 1


def test_network_compiler_plans_may_be_captured_in_graphs() -> None:
    """TensorRT-RTX refuses to capture what allocates memory of its own."""
    config = NetworkCompiler(trt, AMPERE, None)._config([])
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_network_compiler_what_tensorrt_speaks_to_outlives_every_compiler() -> None:
    """It keeps the first logger of a process, and does not keep recorders of errors alive."""
    one, other = NetworkCompiler(trt, ADA, None), NetworkCompiler(trt, AMPERE, None)
    assert one._logger is other._logger
    assert one._errors is other._errors
