"""Compiles one kernel after another in a process of its own, which is the only one that imports Triton.

Owns that process: its environment, what it asks Triton for, what it checks of the result, and the words of a failure.
Never writes into an engine.
"""

from __future__ import annotations

import importlib
import os
import re
import select
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import Capability, has_type, shared_limit
from trident_ensemble.contract.manifest import sm_target

#: Variables by which Triton, LLVM and ptxas compile otherwise, or in the interpreter.
_CHANGING = re.compile(r"TRITON_|LLVM_|MLIR_|NVPTX_|PTXAS_|DISABLE_PTXAS_|USE_IR_LOC$|AMDGCN_")
_SETTINGS = {
    # Line numbers are two thirds of a cubin.
    "TRITON_DISABLE_LINE_INFO": "1",
    "TRITON_DEFAULT_FP_FUSION": "1",
}
_WARP = 32
_MAX_THREADS = 1024
#: Columns of tensor memory, which compute capability 10.x has.
_MAX_TENSOR_COLUMNS = 512
_ALIGNMENT = 16
_LONGEST_LOG = 2000


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as Triton made it of a spec.

    Args:
        entry: the function's name in the cubin.
        num_threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        parameters: names and types, in the order of the call.
        cubin: the machine code.
        ptx: what it was assembled from.
    """

    entry: str
    num_threads: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]
    cubin: bytes
    ptx: str


@dataclass(frozen=True)
class Failure:
    """The reason why a spec is not compiled.

    Args:
        words: in Triton's words where it is Triton's refusal, else in ours.
    """

    words: str


class _UnfitError(Exception):
    """What Triton made does not fit the target, or the engine."""


def main() -> None:
    """Serve with what the command line says: the connection's descriptor, the target, the package, the folder."""
    descriptor, major, minor, package, folder = sys.argv[1:]
    serve(Connection(int(descriptor)), (int(major), int(minor)), package, folder)


def serve(connection: Connection, capability: Capability, package: str, folder: str) -> None:
    """Answer each `KernelSpec` with a `CompiledKernel` or a `Failure`, until the connection is closed.

    Args:
        connection: to the process that started this one.
        capability: the target.
        package: the package of the kernels' sources.
        folder: a temporary folder that is this process's alone.
    """
    _leave_group(connection)
    log = Path(folder) / "log"
    _separate(folder, log)
    with suppress(EOFError):
        while True:
            spec: KernelSpec = connection.recv()
            connection.send(answer(spec, capability, package, log))


def answer(spec: KernelSpec, capability: Capability, package: str, log: Path) -> CompiledKernel | Failure:
    """Return a spec's kernel, or why there is none, with what was written to the log meanwhile."""
    before = log.stat().st_size
    try:
        return _compile(spec, capability, package)
    except _UnfitError as error:
        return Failure(str(error))
    except Exception as error:
        said = log.read_bytes()[before:].decode(errors="replace").strip()[-_LONGEST_LOG:]
        return Failure("\n".join(filter(None, (f"{type(error).__name__}: {error}", said))))


def _leave_group(connection: Connection) -> None:
    """Become a group of processes with ptxas, to be ended together: by the parent, or when that is no more.

    Ctrl-C at a terminal is the parent's, too.
    """
    os.setpgid(0, 0)
    ends = select.poll()
    ends.register(connection.fileno(), 0)  # which asks for nothing but that the other side is closed

    def end_with_parent() -> None:
        ends.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _separate(folder: str, log: Path) -> None:
    """Let nothing of the user's environment change the code, and nothing of the work appear elsewhere."""
    for name in [name for name in os.environ if _CHANGING.match(name)]:
        del os.environ[name]
    os.environ.update(_SETTINGS, TRITON_CACHE_DIR=f"{folder}/cache", TRITON_HOME=folder, TMPDIR=folder)
    tempfile.tempdir = folder
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)


def _compile(spec: KernelSpec, capability: Capability, package: str) -> CompiledKernel:
    compiler: Any = importlib.import_module("triton.compiler")
    backends: Any = importlib.import_module("triton.backends.compiler")
    module, name = spec.function.split(".")
    function: Any = getattr(importlib.import_module(f"{package}.{module}"), name)
    source = _source(compiler, function, spec)
    target = backends.GPUTarget("cuda", 10 * capability[0] + capability[1], _WARP)
    made = compiler.compile(source, target=target, options=_options(spec))
    metadata = made.metadata
    _check(metadata, capability)
    parameters = tuple((name, source.signature[name]) for name in function.arg_names if name in dict(spec.types))
    return CompiledKernel(
        metadata.name,
        metadata.num_warps * _WARP,
        metadata.shared,
        parameters,
        made.asm["cubin"],
        made.asm["ptx"],
    )


def _options(spec: KernelSpec) -> dict[str, int]:
    return {"num_warps": spec.num_warps, "num_stages": spec.num_stages}


def _source(compiler: Any, function: Any, spec: KernelSpec) -> Any:
    types, constants, names = dict(spec.types), dict(spec.constants), list(function.arg_names)
    given = sorted([*types, *constants])
    if given != sorted(names):
        raise _UnfitError(f"its parameters are {', '.join(names)}, the spec has {', '.join(given)}")
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", _ALIGNMENT]] for i, name in enumerate(names) if signature[name][0] == "*"}
    values = {(names.index(name),): value for name, value in constants.items()}
    return compiler.ASTSource(function, signature, values, aligned)


def _check(metadata: Any, capability: Capability) -> None:
    """Refuse what the target cannot run, or the host does not launch."""
    limit = shared_limit(capability)
    limits = {
        "bytes of shared memory": (metadata.shared, limit),
        "threads": (metadata.num_warps * _WARP, _MAX_THREADS),
        "columns of tensor memory": (metadata.tmem_size or 0, _MAX_TENSOR_COLUMNS),
        "blocks in a cluster": (metadata.num_ctas, 1),
        "bytes of scratch memory": ((metadata.global_scratch_size or 0) + (metadata.profile_scratch_size or 0), 0),
    }
    for what, (has, most) in limits.items():
        if has > most:
            raise _UnfitError(f"it has {has} {what}, and {sm_target(capability)} takes {most} at most")


def unknown_types(spec: KernelSpec, capability: Capability) -> list[str]:
    """Return the parameters, with their types, that the target does not compute with."""
    return [f"{name} ({dtype})" for name, dtype in spec.types if not has_type(capability, dtype)]
