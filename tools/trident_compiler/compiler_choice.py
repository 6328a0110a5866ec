"""The choice of the compiler that builds an engine, and of its target.

Owns the choice and its reasons. Never imports a compiler that is not chosen, so that a machine needs only its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic

from trident_compiler.compiler import EngineCompiler
from trident_compiler.gpu_choice import BuildRequest, choose_gpus, room
from trident_compiler.model_folder import Checkpoint, ExportedModel, Opened
from trident_compiler.planning.machine import Machine, machine_bytes, this_machine
from trident_compiler.tensorrt.gpu import Gpus, gpus_at_hand
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import sm_target

OPENVINO, TENSORRT, CUDA = "openvino", "tensorrt", "cuda"
#: TensorRT's Python modules by the compiler's name in the manifest, best first.
_MODULES = (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt_rtx"), ("tensorrt_rtx", "tensorrt_rtx_bindings"))
_FP8_CACHE = "--kv-cache-precision fp8"
_INSTALL = "pip install 'trident-llm[tensorrt]'"
_INSTALL_RTX = "pip install 'trident-llm[tensorrt-rtx]'"


@dataclass(frozen=True)
class CompilerChoice(Generic[Opened]):
    """A compiler, and why it was chosen.

    Args:
        compiler: which.
        why: for people.
        gpus: those that will serve the engine; none where CPUs will.
    """

    compiler: EngineCompiler[Opened]
    why: str
    gpus: tuple[int, ...] = ()


def choose_compiler(asked: BuildRequest) -> CompilerChoice[Checkpoint]:
    """Return the compiler of checkpoints that was asked for, or the best one for this machine.

    Raises:
        BuildError: what was asked for cannot be built here.
    """
    if asked.tensor_parallel < 1:
        raise BuildError(f"--tensor-parallel: must be at least 1, not {asked.tensor_parallel}")
    if asked.engine == OPENVINO:
        return _openvino(asked, "as asked")
    here = gpus_at_hand()
    if asked.engine == CUDA:
        return _cuda(asked, here)
    if asked.engine == TENSORRT or asked.capability:
        return _tensorrt(asked, here, "as asked" if asked.engine else "--compute-capability names a GPU")
    if not here.found:
        return _openvino(asked, here.why_none)
    if _module() is None:
        return _openvino(asked, f"there is an NVIDIA GPU, but no TensorRT; for it: {_INSTALL}, or --engine cuda")
    return _tensorrt(asked, here, None)


def choose_exported_compiler(asked: BuildRequest) -> CompilerChoice[ExportedModel]:
    """Return the compiler of networks that were exported to OpenVINO, which is OpenVINO.

    Raises:
        BuildError: another was asked for.
    """
    why = "the model was exported to OpenVINO"
    if asked.engine in (TENSORRT, CUDA):
        raise BuildError(
            f"--engine {asked.engine}: {why}, and is built by it alone; build from the original checkpoint"
        )
    machine = _cpus(asked, why)
    with _installed():
        from trident_compiler.openvino.exported.compiler import ExportedCompiler  # noqa: PLC0415
    return CompilerChoice(ExportedCompiler(machine), why)


def _openvino(asked: BuildRequest, why: str) -> CompilerChoice[Checkpoint]:
    machine = _cpus(asked, why)
    with _installed():
        from trident_compiler.openvino.compiler import OpenVINOCompiler  # noqa: PLC0415
    return CompilerChoice(OpenVINOCompiler(machine), why)


def _cpus(asked: BuildRequest, why: str) -> Machine:
    """Return this machine, less the memory that is left to others; refuse what is asked of GPUs."""
    if asked.fp8_cache:
        raise BuildError(
            f"{_FP8_CACHE}: the engine will be OpenVINO's, for CPUs ({why}), whose KV cache follows the computation; "
            "leave it out, or choose --engine cuda"
        )
    for option, value in (
        ("--compute-capability", asked.capability),
        ("--gpu", asked.gpus),
        ("--gpu-memory", asked.gpu_memory),
        ("--tensor-parallel", asked.tensor_parallel > 1),
        ("--attention lengths", asked.attention_lengths),
    ):
        if value:
            raise BuildError(
                f"{option}: the engine will be OpenVINO's, for CPUs ({why}); choose --engine tensorrt or cuda"
            )
    machine = this_machine()
    return replace(machine, free_bytes=room(machine.free_bytes, machine_bytes(), asked.taken.cpu))


@contextmanager
def _installed() -> Iterator[None]:
    """Say how to install OpenVINO where an import of it fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != OPENVINO:
            raise
        raise BuildError("--engine openvino: it is not installed; pip install 'trident-llm[openvino]'") from None


def _tensorrt(asked: BuildRequest, here: Gpus, why: str | None) -> CompilerChoice[Checkpoint]:
    """Return TensorRT's compiler; without a reason `why` the GPU that is built for is the reason."""
    from trident_compiler.tensorrt.compiler import TensorRTCompiler, TensorRTTarget  # noqa: PLC0415

    if asked.fp8_cache:
        raise BuildError(
            f"{_FP8_CACHE}: the engine will be TensorRT's, whose slots have the format of the computation; leave it "
            "out, or choose --engine cuda"
        )
    chosen = choose_gpus(asked, here, TENSORRT)
    found = _module(rtx=not chosen.here)
    if found is None:
        raise BuildError(
            f"--engine tensorrt: it is not installed; {_INSTALL} or {_INSTALL_RTX}"
            if chosen.here
            else f"--compute-capability: TensorRT-RTX builds for GPUs elsewhere, and is not installed; {_INSTALL_RTX}"
        )
    name, trt = found
    built_for = TensorRTTarget(
        name=name,
        capability=chosen.capability,
        ordinal=chosen.here[0].ordinal if chosen.here else None,
        free_bytes=chosen.free_bytes,
        memory=chosen.memory,
        num_devices=asked.tensor_parallel,
        by_lengths=asked.attention_lengths,
    )
    return CompilerChoice(
        TensorRTCompiler(trt, built_for),
        why or f"this machine's GPU is {sm_target(built_for.capability)}",
        chosen.serving,
    )


def _cuda(asked: BuildRequest, here: Gpus) -> CompilerChoice[Checkpoint]:
    """Return the compiler of our own kernels."""
    from trident_compiler.cuda.compiler import CudaCompiler, CudaTarget  # noqa: PLC0415
    from trident_compiler.cuda.kernel_compiler import compile_kernels, triton_version  # noqa: PLC0415
    from trident_compiler.cuda.targets import target_of  # noqa: PLC0415

    if asked.tensor_parallel > 1:
        raise BuildError(
            f"--tensor-parallel {asked.tensor_parallel}: an engine of --engine cuda runs on one GPU; leave it out, or "
            "choose --engine tensorrt"
        )
    if asked.attention_lengths:
        raise BuildError(
            "--attention lengths: there are no slots with --engine cuda, whose attention reads what a sequence has; "
            "leave it out"
        )
    chosen = choose_gpus(asked, here, CUDA)
    target_of(chosen.capability)
    built_for = CudaTarget(chosen.capability, chosen.free_bytes, chosen.memory, asked.fp8_cache)
    return CompilerChoice(CudaCompiler(built_for, triton_version(), compile_kernels), "as asked", chosen.serving)


def _module(*, rtx: bool = False) -> tuple[str, Any] | None:
    """Return the first of TensorRT's modules that is installed, with its name in the manifest."""
    for name, module in _MODULES:
        if rtx and name == "tensorrt":
            continue
        try:
            return name, importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return None
