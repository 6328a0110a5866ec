"""Compiles specs to cubins, for a named GPU on any machine, on all cores.

Owns the processes that compile, the files of the kernels, and the sentences about those that cannot be compiled. Never
imports Triton itself: what it reads from the environment when it is imported is nothing that lasts.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from multiprocessing.connection import Connection, wait
from pathlib import Path

from trident_backend.engine.gpu.program import Kernel
from trident_compiler.compiler import Progress
from trident_compiler.cuda.kernel_process import CompiledKernel, Failure, unknown_types
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import Capability, target_of
from trident_compiler.planning.machine import this_machine
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import sm_target

#: Where the sources are.
SOURCES = "trident_compiler.cuda.kernels"
#: The cubins' folder in an engine's.
KERNELS_FOLDER = "kernels"
#: The program of a process that compiles. The caller's own is not run again in it, as `multiprocessing` would have it.
_SERVE = "from trident_compiler.cuda.kernel_process import main; main()"
#: Memory that one of them is reckoned with.
_PROCESS_BYTES = 1 << 30
#: The versions of Triton that the sources are proven with begin with this.
_TRITON = "3.7."
_INSTALL = "pip install 'trident-llm[cuda]'"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def triton_version() -> str:
    """Return the version of the Triton language's compiler.

    Raises:
        BuildError: it is not installed, or of a version that the kernels are not proven with.
    """
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        raise BuildError(f"--engine cuda: the compiler of the Triton language is not installed: {_INSTALL}") from None
    if not version.startswith(_TRITON):
        raise BuildError(f"--engine cuda: triton {version} is installed, the kernels take {_TRITON}x: {_INSTALL}")
    return version


def compile_kernels(
    specs: Mapping[str, KernelSpec], capability: Capability, folder: Path, progress: Progress
) -> dict[str, Kernel]:
    """Compile kernels and write their cubins into the engine's folder.

    Args:
        specs: by name; those that are equal are compiled once and share a file.
        capability: the target.
        folder: the engine's folder; its folder `kernels` is made.
        progress: gets a phase with a step for each kernel.

    Returns:
        kernels by the names of the specs.

    Raises:
        BuildError: Triton is not installed, a kernel cannot be compiled, which is named with its constants, or files
            cannot be written.
    """
    names: dict[KernelSpec, str] = {}
    for name, spec in specs.items():
        assert _FILE_NAME.fullmatch(name), f"{name!r} is a kernel's name and becomes a file's"
        names.setdefault(spec, name)
    try:
        compiled = compile_specs(list(names), capability, progress)
        (folder / KERNELS_FOLDER).mkdir()
        for spec, name in names.items():
            (folder / _file(name)).write_bytes(compiled[spec].cubin)
    except OSError as error:
        raise BuildError(f"kernels cannot be compiled and written: {error}") from None
    return {name: _kernel(spec, compiled[spec], _file(names[spec])) for name, spec in specs.items()}


def compile_specs(
    specs: Sequence[KernelSpec], capability: Capability, progress: Progress, *, package: str = SOURCES
) -> dict[KernelSpec, CompiledKernel]:
    """Compile kernels, as `answers` does.

    Raises:
        BuildError: as `compile_kernels` has it.
    """
    compiled: dict[KernelSpec, CompiledKernel] = {}
    with closing(answers(specs, capability, progress, package=package)) as found:
        for spec, answer in found:
            if isinstance(answer, Failure):
                raise BuildError(f"{describe(spec)} cannot be compiled for {sm_target(capability)}: {answer.words}")
            compiled[spec] = answer
    return compiled


def answers(
    specs: Sequence[KernelSpec], capability: Capability, progress: Progress, *, package: str = SOURCES
) -> Generator[tuple[KernelSpec, CompiledKernel | Failure], None, None]:
    """Compile kernels, on the cores and in the memory that are free; the processes have ended when the generator has.

    Args:
        specs: each a different one.
        capability: the target.
        progress: gets a phase with a step for each kernel.
        package: of the sources.

    Yields:
        each spec, with its kernel or why there is none, as soon as that is known.

    Raises:
        BuildError: Triton is not installed, or the target does not compute with a kernel's types.
    """
    target_of(capability)
    for spec in specs:
        if unknown := unknown_types(spec, capability):
            raise BuildError(
                f"{describe(spec)}: {sm_target(capability)} does not compute with the types of {', '.join(unknown)}; "
                "build for compute capability 8.9 or later, or in another precision"
            )
    triton_version()
    progress.phase("compiling kernels", len(specs), in_bytes=False)
    with (
        tempfile.TemporaryDirectory(prefix="trident-kernels-", ignore_cleanup_errors=True) as folder,
        _processes(_num_processes(len(specs)), capability, package, folder) as processes,
    ):
        for num_done, answer in enumerate(_answers(specs, processes), start=1):
            yield answer
            progress.reached(num_done)


def describe(spec: KernelSpec) -> str:
    """Return a spec for people: its function, types and constants, warps and stages."""
    parts = [f"{name}: {dtype}" for name, dtype in spec.types] + [f"{name}={value}" for name, value in spec.constants]
    return f"kernel {spec.function}({', '.join(parts)}) of {spec.num_warps} warps and {spec.num_stages} stages"


def _num_processes(num_specs: int) -> int:
    """Return how many processes compile: a core and the memory of one each, but one at least."""
    return min(num_specs, len(os.sched_getaffinity(0)), max(1, this_machine().free_bytes // _PROCESS_BYTES))


def _file(name: str) -> str:
    return f"{KERNELS_FOLDER}/{name}.cubin"


def _kernel(spec: KernelSpec, made: CompiledKernel, file: str) -> Kernel:
    constants = dict(spec.constants)
    return Kernel(file, made.entry, spec.function, made.num_threads, made.shared_bytes, made.parameters, constants)


@contextmanager
def _processes(
    count: int, capability: Capability, package: str, folder: str
) -> Iterator[dict[Connection, subprocess.Popen[bytes]]]:
    """Start processes that compile, by their connections; all of them end with the context, whatever they do."""
    processes: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for place in range(count):
            own = Path(folder) / str(place)
            own.mkdir()
            ours, theirs = multiprocessing.Pipe()
            with theirs:
                processes[ours] = _start(theirs, capability, package, own)
        yield processes
    finally:
        for connection, process in processes.items():
            connection.close()
            _kill(process)


def _start(connection: Connection, capability: Capability, package: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that finds the modules that this one does, and no others in the folder that it begins in."""
    described = map(str, (connection.fileno(), *capability, package, folder))
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    return subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "-c", _SERVE, *described],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and the assembler that it may have started, which is of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _answers(
    specs: Sequence[KernelSpec], processes: Mapping[Connection, subprocess.Popen[bytes]]
) -> Iterator[tuple[KernelSpec, CompiledKernel | Failure]]:
    """Yield each spec's answer as soon as it is there."""
    todo = deque(specs)
    idle = list(processes)
    busy: dict[Connection, KernelSpec] = {}
    while todo or busy:
        while todo and idle:
            connection = idle.pop()
            busy[connection] = todo.popleft()
            with suppress(BrokenPipeError):  # it has died, as `_receive` finds out
                connection.send(busy[connection])
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            yield busy[ready], _receive(ready, processes[ready])
            del busy[ready]
            idle.append(ready)


def _receive(connection: Connection, process: subprocess.Popen[bytes]) -> CompiledKernel | Failure:
    try:
        received: CompiledKernel | Failure = connection.recv()
    except (EOFError, ConnectionResetError):
        return Failure(
            f"its compiler's process ended with {process.wait()} (minus a signal's number: -9 is often too little "
            "memory, -6 or -11 a fault of the compiler)"
        )
    return received
