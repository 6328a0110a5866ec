"""The first five minutes on a GPU: are the kernels right, are graphs equal, how fast is what.

`python -m tests.gpu.gpu_first --build FOLDER` makes kernels for compute capability 9.0 on any machine.
`python -m tests.gpu.gpu_first FOLDER` runs them where there is a GPU, with its driver, cuda-bindings and numpy.

Owns the order, the clock and the page. Never measures anything itself. Exits with 2 where there is no GPU, with 1 where
something is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from tests.gpu import first_attention, first_engines, first_linear, hardware
from tests.gpu.first_bench import Bench
from trident_backend.engine.cuda.program_file import read_program
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_ensemble.contract.manifest import sm_target

_COPIED_BYTES = 1 << 30
_PAGE = "gpu-first.txt"
#: A part of the page: what it is about, and what yields its lines.
Part = tuple[str, Callable[[], Iterator[str]]]


class Page:
    """Lines that are printed and written as they come, so that what ends early has left something.

    Args:
        path: of the file.
        minutes: after which no further part is begun.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self._path = path
        self._begin = time.monotonic()
        self._end = self._begin + 60 * minutes
        self.is_right = True
        path.write_text("")

    def write(self, line: str) -> None:
        """Add a line."""
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    def fill(self, parts: list[Part]) -> None:
        """Add all parts; one that fails says so, and the others follow."""
        for name, lines in parts:
            if time.monotonic() > self._end:
                self.write(f"{name}: left out, there was no time")
                continue
            try:
                for line in lines():
                    self.write(line)
            except Exception as error:
                self.is_right = False
                self.write(f"{name}: FAILED: {type(error).__name__}: {error}")
                traceback.print_exc()
        self.write(f"{time.monotonic() - self._begin:.0f} s; {'all right' if self.is_right else 'SOMETHING IS WRONG'}")


def main(arguments: list[str] | None = None) -> int:
    """Build, or try what was built."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.gpu_first")
    parser.add_argument("folder", type=Path, help="of the kernels")
    parser.add_argument("--build", action="store_true", help="build them here, and end")
    parser.add_argument("--target", default="9.0", help="with --build, the compute capability, 9.0 by default")
    engine_help = "an engine's folder, such as repository/core/1; one without weights is given random ones"
    parser.add_argument("--engine", type=Path, action="append", default=[], metavar="FOLDER", help=engine_help)
    parser.add_argument("--minutes", type=float, default=5.0, help="begin nothing after so long")
    parser.add_argument("--page", type=Path, default=Path(_PAGE), help=f"where the page goes, {_PAGE} by default")
    args = parser.parse_args(arguments)
    if args.build:
        return _build(args.folder, args.target)
    if reason := hardware.cuda_missing():
        print(f"this needs an NVIDIA GPU: {reason}", file=sys.stderr)
        return 2
    page = Page(args.page, args.minutes)
    device = Device(0)
    try:
        folder = args.folder / sm_target(device.capability)
        page.write(f"{hardware.gpu_name()}, {device.num_multiprocessors} multiprocessors")
        page.fill([*kernel_parts(device, folder), *engine_parts(args.engine), ("TensorRT-RTX", _rtx)])
    finally:
        device.close()
    return 0 if page.is_right else 1


def kernel_parts(device: Device, folder: Path) -> list[Part]:
    """What is tried of kernels, the most important first."""
    program = read_program(folder)

    def with_kernels(lines: Callable[[Bench, KernelLibrary], Iterator[str]]) -> Callable[[], Iterator[str]]:
        def run() -> Iterator[str]:
            with closing(KernelLibrary(device, folder, program.kernels)) as kernels, closing(Bench(device)) as bench:
                yield from lines(bench, kernels)

        return run

    steps = [first_attention.mixed(seed) for seed in range(6)]
    return [
        ("attention", with_kernels(lambda bench, kernels: first_attention.check(bench, kernels, program, steps))),
        ("linear", with_kernels(lambda bench, kernels: first_linear.check(bench, kernels, program))),
        ("copy", with_kernels(lambda bench, _: copy_speed(bench))),
        ("speed of attention", with_kernels(lambda bench, kernels: first_attention.measure(bench, kernels, program))),
        ("speed of linear", with_kernels(lambda bench, kernels: first_linear.measure(bench, kernels, program))),
    ]


def engine_parts(folders: list[Path]) -> list[Part]:
    """What is tried of whole engines."""
    return [(f"engine {folder}", lambda folder=folder: first_engines.measure(folder)) for folder in folders]  # type: ignore[misc]


def copy_speed(bench: Bench, num_bytes: int = _COPIED_BYTES) -> Iterator[str]:
    """Yield how fast memory is copied, which is read and written."""
    source, target = bench.random(num_bytes), bench.empty(num_bytes)
    seconds = bench.seconds(lambda _: bench.device.copy(target, source, num_bytes))
    yield f"copy: {2 * num_bytes / seconds / 1e12:.2f} TB/s"


def _rtx() -> Iterator[str]:
    """Yield whether a plan of TensorRT-RTX without a target runs here; a process of its own tries."""
    if hardware.module_missing("tensorrt_rtx") or importlib.util.find_spec("pytest") is None:
        yield "TensorRT-RTX: not tried, tensorrt_rtx and pytest are not both installed"
        return
    command = [sys.executable, "-m", "pytest", "-q", "-rxs", "tests/gpu/test_untargeted.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    yield f"TensorRT-RTX, a plan without a target: {'; '.join(done.stdout.strip().splitlines()[-3:])}"


def _build(folder: Path, target: str) -> int:
    from tests.gpu import first_build  # noqa: PLC0415  a machine with a GPU need not have the compiler
    from trident_compiler.cuda.kernel_compiler import compile_kernels  # noqa: PLC0415

    major, minor = (int(part) for part in target.split("."))
    into = folder / sm_target((major, minor))
    first_build.build(into, (major, minor), Counting(), compile_kernels)
    print(into)
    return 0


class Counting:
    """A build's progress, in lines."""

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        """Begin a phase."""
        print(f"{name}: {total}", file=sys.stderr)

    def reached(self, done: int) -> None:
        """Report how much is done."""
        print(f"\r{done}", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
