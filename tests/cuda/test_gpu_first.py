"""What `make gpu-first` does on a GPU, on one that is a double: arithmetic, page, and that wrong numbers are seen."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda import small_programs, twins
from tests.cuda.calls import Call
from tests.cuda.engines import CAPABILITY, write_doubles
from tests.cuda.small_steps import small_machine
from tests.fakes.progress import SilentProgress
from tests.gpu import first_attention, first_build, first_engines, first_linear, gpu_first, hardware
from tests.gpu.first_attention import Attention, Lengths, WrongError
from tests.gpu.first_bench import Bench
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.cuda.program_file import read_program
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.program import Program
from trident_ensemble.contract import layout

WANTED = first_build.Wanted(
    attention=((2, 4, 32), (1, 1, 16)),
    matrices={
        "bf16": (48, 2048, "bf16", 0),
        "int8": (48, 64, "i8", 0),
        "int4": (48, 256, "i8", 128),
        "fp8": (48, 64, "fp8e4nv", 0),
    },
    max_rows=600,
)

#: Few sizes are captured of it.
TINY = small_programs.Small(max_num_seqs=2, max_num_tokens=4, max_seq_len=32, num_blocks=12)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """The doubles; at the end nothing may be left on the GPU."""
    with small_machine():
        yield
        gc.collect()
        assert GPUS.leaks() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "sm_89"
    first_build.build(folder, CAPABILITY, SilentProgress(), write_doubles, WANTED)
    return folder


@pytest.fixture(scope="module")
def program(folder: Path) -> Program:
    return read_program(folder)


@pytest.fixture
def bench(machine: None) -> Iterator[Bench]:  # noqa: ARG001 (the doubles must be there)
    device = Device(0)
    with closing(Bench(device, 0.0)) as bench:
        yield bench
    device.close()


@pytest.fixture
def kernels(bench: Bench, folder: Path, program: Program) -> Iterator[KernelLibrary]:
    with closing(KernelLibrary(bench.device, folder, program.kernels)) as kernels:
        yield kernels


STEPS = [first_attention.mixed(seed, 300, (1, 1, 3, 40)) for seed in range(2)] + [Lengths((1500, 0), (1, 7))]


def test_gpu_first_attention_is_held_against_float64_and_its_graph(
    bench: Bench, kernels: KernelLibrary, program: Program
) -> None:
    lines = list(first_attention.check(bench, kernels, program, STEPS))
    assert len(lines) == 2
    for line, kind in zip(lines, ("2x4 heads of 32", "1x1 heads of 16"), strict=True):
        assert line.startswith(f"attention {kind}: 3 mixed steps right, ")
        assert line.endswith("graphs equal bit for bit")
        assert ", 0 divided tiles" not in line


def off(twin: Callable[[Call], None], name: str, wrong: Callable[[Any], Any]) -> Callable[[Call], None]:
    """A twin that changes what it has written."""

    def run(call: Call) -> None:
        twin(call)
        found = call.read(name, (8,))
        call.store(name, wrong(found))

    return run


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Any], Any]], None]:
    """Makes a kernel wrong."""

    def replace(function: str, wrong: Callable[[Any], Any]) -> None:
        find = twins.find
        twin = off(find(function), "out", wrong)
        monkeypatch.setattr(twins, "find", lambda name: twin if name == function else find(name))

    return replace


def test_gpu_first_wrong_attention_is_seen(
    bench: Bench, kernels: KernelLibrary, program: Program, replaced: Callable[..., None]
) -> None:
    replaced("attention.attend", lambda found: found + 3.0)
    with pytest.raises(WrongError, match=r"past=.*error .*e-0?[0-9]+, 1e-02 are allowed"):
        list(first_attention.check(bench, kernels, program, STEPS[:1]))


def test_gpu_first_a_graph_with_other_bits_is_seen(
    bench: Bench, kernels: KernelLibrary, program: Program, replaced: Callable[..., None]
) -> None:
    """The second run of attention is off by little."""
    runs = iter(range(100))
    replaced("attention.attend", lambda found: found if next(runs) < 2 else found * 1.01)
    with pytest.raises(WrongError, match="a graph computes other bits"):
        list(first_attention.check(bench, kernels, program, STEPS[:1]))


def test_gpu_first_products_of_all_formats_are_held_against_float64(
    bench: Bench, kernels: KernelLibrary, program: Program, replaced: Callable[..., None]
) -> None:
    assert first_linear.cases(program) == ["bf16", "int8", "int4", "fp8"]
    lines = list(first_linear.check(bench, kernels, program, (1, 20, 300)))
    assert [line.partition(":")[0] for line in lines] == [f"linear {name}" for name in WANTED.matrices]
    assert all("1, 20, 300 rows right" in line for line in lines)
    replaced("linear.linear", lambda found: found + 100.0)
    with pytest.raises(WrongError, match=r"bf16 of 20 rows|bf16 of 1 rows"):
        list(first_linear.check(bench, kernels, program, (1, 20)))


def test_gpu_first_bytes_and_operations_are_counted_by_what_tokens_see(
    bench: Bench, kernels: KernelLibrary, program: Program
) -> None:
    lengths = Lengths((10, 0), (1, 3))
    case = Attention(bench, kernels, program.attention_kinds[0], 32, lengths)
    assert case.moved_bytes() == (11 + 3) * 2 * 2 * 32 * 2
    assert case.flops() == (11 + 1 + 2 + 3) * 8 * 4 * 32


def test_gpu_first_speeds_are_lines(
    bench: Bench, kernels: KernelLibrary, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list(first_attention.measure(bench, kernels, program, ((3, 40),), (70,)))
    assert [line.partition(":")[0] for line in lines] == [
        f"attention {kind}, {name}"
        for kind in ("2x4 heads of 32", "1x1 heads of 16")
        for name in ("3 sequences of 40", "prompt of 70")
    ]
    assert all("TB/s of keys and values" in line and "TFLOP/s" in line for line in lines)
    monkeypatch.setattr(first_linear, "_COLD_BYTES", 1 << 13)
    lines = list(first_linear.measure(bench, kernels, program, (1, 16), (300,)))
    assert [line.count("TB/s") for line in lines] == [2] * 4
    assert all("300 rows" in line and "TFLOP/s" in line for line in lines)
    (line,) = gpu_first.copy_speed(bench, 1 << 20)
    assert line.startswith("copy: ")


def test_gpu_first_an_engine_without_weights_gets_some_and_is_timed(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    small_programs.build(folder, TINY)
    path = folder / layout.WEIGHTS_FILE
    size = path.stat().st_size
    path.unlink()
    lines = list(first_engines.measure(folder, (1, 2, 1000), 16, 2))
    weights = read_program(folder).weights
    assert path.stat().st_size == max(each.offset + each.num_bytes for each in weights) <= size
    assert len(np.unique(np.fromfile(path, np.uint8))) > 100
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "engine 1, 1 sequences of 16 tokens",
        "engine 1, 2 sequences of 16 tokens",
        "engine 1, prompt of 4",
    ]
    assert all("tokens/s" in line for line in lines[1:])


def test_gpu_first_a_part_that_fails_is_on_the_page_and_the_others_follow(tmp_path: Path) -> None:
    def failing() -> Iterator[str]:
        yield "begun"
        raise WrongError("a number")

    page = gpu_first.Page(tmp_path / "page", 1.0)
    page.fill([("one", failing), ("two", lambda: iter(["fine"]))])
    assert (tmp_path / "page").read_text().splitlines() == [
        "begun",
        "one: FAILED: WrongError: a number",
        "fine",
        "0 s; SOMETHING IS WRONG",
    ]


def test_gpu_first_the_command_runs_its_parts_until_the_time_is_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu_name", lambda: "a double (sm_89)")
    page = tmp_path / "page"
    assert gpu_first.main([str(folder.parent), "--page", str(page), "--minutes", "-1", "--engine", "here"]) == 0
    lines = page.read_text().splitlines()
    assert lines[0].startswith("a double (sm_89), ")
    assert lines[1:-1] == [
        f"{name}: left out, there was no time"
        for name in (
            "attention",
            "linear",
            "copy",
            "speed of attention",
            "speed of linear",
            "engine here",
            "TensorRT-RTX",
        )
    ]


def test_gpu_first_without_a_gpu_one_sentence_says_so(tmp_path: Path) -> None:
    """In a process without the doubles."""
    if not (reason := _missing_without_doubles()):
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "tests.gpu.gpu_first", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=_environment())
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"this needs an NVIDIA GPU: {reason}\n"


def _missing_without_doubles() -> str:
    code = "from tests.gpu.hardware import cuda_missing; print(cuda_missing())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=_environment()).stdout.strip()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
