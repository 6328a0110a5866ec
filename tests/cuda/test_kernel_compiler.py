"""Compiling kernels for named GPUs: what is written, what is refused, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from tests.cuda.machine_code import resources
from trident_compiler.cuda import kernel_compiler
from trident_compiler.cuda.kernel_compiler import compile_kernels, compile_specs, triton_version
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import TARGETS, has_type, num_programs, shared_limit
from trident_compiler.planning.machine import Machine
from trident_ensemble.contract.errors import BuildError

OURS = "tests.cuda"
ADD = KernelSpec.of("sample_kernels.add", {"out": "*bf16", "x": "*bf16", "count": "i32"}, {"SIZE": 256})
GELU = KernelSpec.of("pointwise.unary", {"out": "*bf16", "x": "*bf16"}, {"OP": 1, "WIDTH": 64, "CHUNK": 64}, 1)
RELU = KernelSpec.of("pointwise.unary", {"out": "*fp16", "x": "*fp16"}, {"OP": 3, "WIDTH": 64, "CHUNK": 64}, 2)


class Steps:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        self.told.append((name, total, in_bytes))

    def reached(self, done: int) -> None:
        self.told.append(done)


def product(columns: int, depth: int, num_stages: int) -> KernelSpec:
    """A product of 128 rows of bf16."""
    types = {"out": "*fp32", "x": "*bf16", "weight": "*bf16", "count": "i32"}
    constants = {"ROWS": 128, "COLUMNS": columns, "DEPTH": depth}
    return KernelSpec.of("sample_kernels.product", types, constants, 8, num_stages)


def test_kernels_are_files_with_what_a_launch_must_know(tmp_path: Path) -> None:
    progress = Steps()
    kernels = compile_kernels({"gelu": GELU, "top_k.64": RELU, "again": GELU}, (9, 0), tmp_path, progress)
    assert progress.told == [("compiling kernels", 2, False), 1, 2]
    assert list(kernels) == ["gelu", "top_k.64", "again"]
    gelu, relu = kernels["gelu"], kernels["top_k.64"]
    assert kernels["again"] == gelu
    assert (gelu.file, relu.file) == ("kernels/gelu.cubin", "kernels/top_k.64.cubin")
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == ["gelu.cubin", "top_k.64.cubin"]
    assert (gelu.entry, gelu.function, gelu.num_threads, relu.num_threads) == ("unary", "pointwise.unary", 32, 64)
    assert gelu.constants == {"OP": 1, "WIDTH": 64, "CHUNK": 64}
    assert [name for name, _ in gelu.parameters] == ["out", "x"]
    assert dict(relu.parameters) == {"out": "*fp16", "x": "*fp16"}
    for kernel in (gelu, relu):
        image = (tmp_path / kernel.file).read_bytes()
        assert image.startswith(b"\x7fELF")
        assert kernel.entry.encode() in image


#: Runs in a process of its own, from a file that nothing guards: compiles in processes that do not run it again, and
#: says that it has imported nothing that they have.
_BUILD = """
import sys
from pathlib import Path
from tests.cuda.test_kernel_compiler import GELU, RELU, Steps
from trident_compiler.cuda.kernel_compiler import compile_kernels
compile_kernels({"gelu": GELU, "relu": RELU}, (9, 0), Path(sys.argv[1]), Steps())
assert "triton" not in sys.modules
with open(sys.argv[1] + "/runs", "a") as runs:
    runs.write("once")
"""


def test_two_builds_are_the_same_bytes_whatever_the_environment(tmp_path: Path) -> None:
    """Options for Triton and ptxas in the environment change nothing, nor do folders; nothing is written elsewhere."""
    strange = {
        "TRITON_INTERPRET": "1",
        "PTXAS_OPTIONS": "-O0",
        "DISABLE_PTXAS_OPT": "1",
        "TRITON_DISABLE_LINE_INFO": "0",
    }
    cubins = []
    for name, more in (("one", {}), ("two", strange)):
        home, scratch = tmp_path / name / "home", tmp_path / name / "scratch"
        for folder in (home, scratch):
            folder.mkdir(parents=True)
        environment = {**os.environ, "HOME": str(home), "TMPDIR": str(scratch), **more}
        script = tmp_path / name / "script.py"
        script.write_text(_BUILD)
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
        subprocess.run([sys.executable, script, tmp_path / name], env=environment, check=True, timeout=120)
        assert (tmp_path / name / "runs").read_text() == "once"
        cubins.append({path.name: path.read_bytes() for path in (tmp_path / name / "kernels").iterdir()})
        assert list(home.iterdir()) == list(scratch.iterdir()) == []
    assert len(cubins[0]) == 2
    assert cubins[0] == cubins[1]


@pytest.mark.parametrize(
    ("function", "types", "constants", "words"),
    [
        ("misspelled", {"out": "*fp32", "x": "*fp32"}, {"SIZE": 64}, ["no_such_function", "tl.store(out + at"]),
        ("uneven", {"out": "*fp32"}, {"SIZE": 96}, ["power of 2"]),
        ("add", {"out": "*bf16", "x": "*bf16"}, {"SIZE": 64, "COUNT": 3}, ["parameters are out, x, count, SIZE"]),
        ("is_none", {"out": "*fp32"}, {"SIZE": 64}, ["there is no is_none"]),
    ],
)
def test_a_kernel_that_cannot_be_compiled_is_named_with_its_constants(
    function: str, types: Mapping[str, str], constants: Mapping[str, int], words: list[str]
) -> None:
    spec = KernelSpec.of(f"sample_kernels.{function}", types, constants)
    with pytest.raises(BuildError) as caught:
        compile_specs([spec], (8, 0), Steps(), package=OURS)
    text = str(caught.value)
    assert f"kernel sample_kernels.{function}(out: " in text
    for word in (*(f"{name}={value}" for name, value in constants.items()), "for sm_80", "4 warps", *words):
        assert word in text


def test_a_compiler_that_crashes_is_named_with_its_signal() -> None:
    spec = KernelSpec.of("sample_kernels.ends_the_process", {"out": "*fp32"}, {"SIZE": 64})
    with pytest.raises(BuildError, match=r"sample_kernels.ends_the_process\(.*ended with -6"):
        compile_specs([ADD, spec], (8, 0), Steps(), package=OURS)


def test_shared_memory_is_held_against_the_target() -> None:
    """A tile that a Hopper multiprocessor holds, and one of a gaming GPU does not."""
    spec = product(128, 64, 5)
    made = compile_specs([spec], (9, 0), Steps(), package=OURS)[spec]
    assert shared_limit((12, 0)) < made.shared_bytes <= shared_limit((9, 0))
    with pytest.raises(BuildError, match=r"COLUMNS=128.* bytes of shared memory, and sm_120 takes 101376 at most"):
        compile_specs([spec], (12, 0), Steps(), package=OURS)


def test_what_a_target_cannot_do_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_compiler, "_processes", None)
    fp8 = KernelSpec.of("pointwise.unary", {"out": "*bf16", "x": "*fp8e4nv"}, {"OP": 1})
    with pytest.raises(BuildError, match=r"pointwise.unary.*sm_86.*x \(\*fp8e4nv\).*8\.9 or later"):
        compile_specs([fp8], (8, 6), Steps())
    with pytest.raises(BuildError, match=r"compute capability 7\.5; there are for 8\.0 \(A100\), 8\.6"):
        compile_specs([GELU], (7, 5), Steps())
    assert has_type((8, 9), "*fp8e4nv")
    assert has_type((8, 0), "*bf16")
    assert all(num_programs(capability) >= 4 * 48 for capability in TARGETS)


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_version() == metadata.version("triton")
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda _: "3.2.0")
        with pytest.raises(BuildError, match=r"triton 3\.2\.0 is installed.*pip install 'trident-llm\[cuda\]'"):
            triton_version()

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(BuildError, match=r"not installed: pip install 'trident-llm\[cuda\]'"):
        compile_specs([GELU], (9, 0), Steps())


@pytest.mark.parametrize(("free_gib", "num_processes"), [(0.5, 1), (3.5, 3), (100.0, 4)])
def test_no_more_processes_than_memory_holds(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, num_processes: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(kernel_compiler, "this_machine", lambda: Machine(int(free_gib * 2**30), "a CPU"))
    counts = []

    @contextmanager
    def none_started(count: int, *_: object) -> Iterator[dict[object, object]]:
        counts.append(count)
        yield {}

    monkeypatch.setattr(kernel_compiler, "_processes", none_started)
    monkeypatch.setattr(kernel_compiler, "_answers", lambda *_: iter(()))
    compile_specs([replace(GELU, num_warps=warps) for warps in (1, 2, 4, 8, 16)], (9, 0), Steps())
    assert counts == [num_processes]


def test_files_that_cannot_be_written_are_a_refused_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a full disk: where kernels are compiled, and where they are written."""
    with monkeypatch.context() as patch:
        patch.setattr(kernel_compiler, "compile_specs", lambda specs, *_: dict.fromkeys(specs))
        with pytest.raises(BuildError, match=r"kernels cannot be compiled and written: .*No such file"):
            compile_kernels({"gelu": GELU}, (9, 0), tmp_path / "missing", Steps())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(BuildError, match=r"kernels cannot be compiled and written: .*No such file"):
        compile_kernels({"gelu": GELU}, (9, 0), tmp_path, Steps())


#: Compiles what takes long, ends as `trident build` does, and says when work has begun.
_LONG_BUILD = """
import signal, sys
from tests.cuda.test_kernel_compiler import ADD, LONG, OURS, Steps
from trident_compiler.cuda.kernel_compiler import compile_specs

class Speaking(Steps):
    def reached(self, done):
        print("reached", done, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    compile_specs([ADD, *LONG], (8, 0), Speaking(), package=OURS)
"""


#: Kernels for which the compiler waits, as if for the assembler, as long as a test may take.
LONG = [KernelSpec.of("sample_kernels.takes_long", {"out": "*fp32"}, {"SIZE": size}) for size in range(8)]


@pytest.fixture
def long_build(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build that works on kernels that take long, in a session of its own."""
    command = [sys.executable, "-c", _LONG_BUILD]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "reached 1\n"
    deadline = time.monotonic() + 60
    while "sleep" not in processes_of(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def processes_of(session: int) -> set[str]:
    """The names of the processes of a session that have not ended."""
    names = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            names.add(name)
    return names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_no_process_behind(
    long_build: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    assert list(tmp_path.glob("trident-kernels-*"))
    long_build.send_signal(number)
    long_build.wait(timeout=20)
    deadline = time.monotonic() + 20
    while left := processes_of(long_build.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def test_the_machine_code_of_a_kernel_is_read() -> None:
    """Kernels of which it is known what they take: one that spills, and products on two generations of GPUs."""
    types = {"out": "*fp32", "x": "*fp32", "count": "i32"}
    spec, spilling = product(128, 64, 3), KernelSpec.of("sample_kernels.many_numbers", types, {"SIZE": 4096}, 1)
    ampere = compile_specs([spec], (8, 0), Steps(), package=OURS)
    hopper = compile_specs([spec, spilling], (9, 0), Steps(), package=OURS)
    first, second, spilled = resources(ampere[spec]), resources(hopper[spec]), resources(hopper[spilling])
    assert (first.matrix, second.matrix, spilled.matrix) == (("mma",), ("wgmma",), ())
    assert first.loop.num_matrix == 64
    for each in (first, second):
        assert each.loop.num_copies == 8
        assert each.loop.num_narrow_copies == each.loop.num_local == each.stack_bytes == 0
        assert 32 <= each.registers <= 255
        assert each.shared_bytes >= 2 * 256 * 64 * 2
    assert spilled.stack_bytes > 0
    assert spilled.loop.num_local > 0
