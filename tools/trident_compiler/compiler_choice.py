"""Which compiler builds an engine, and for what.

Owns the choice and its reasons. Imports the compiler that is chosen and no other, so that a machine needs its own
alone.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from trident_compiler.compiler import EngineCompiler
from trident_compiler.gpu import Capability, Gpu, gpus_at_hand, target
from trident_compiler.machine import this_machine
from trident_ensemble.errors import PlanError

OPENVINO, TENSORRT = "openvino", "tensorrt"
#: TensorRT's Python modules by the compiler's name in the manifest, best first.
_MODULES = (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt_rtx"), ("tensorrt_rtx", "tensorrt_rtx_bindings"))
_INSTALL = "pip install 'trident-llm[tensorrt]'"
_INSTALL_RTX = "pip install 'trident-llm[tensorrt-rtx]'"
_CAPABILITY = re.compile(r"(\d+)\.(\d)")


@dataclass(frozen=True)
class Asked:
    """What the user asked for; None and empty are the defaults.

    Args:
        engine: openvino or tensorrt.
        capability: a GPU's compute capability to build for, such as `8.9`.
        gpus: the GPUs that the engine will run on.
        gpu_memory: bytes to plan with, of each GPU, instead of what it has free.
        tensor_parallel: GPUs to divide the network among.
        attention_lengths: see `TensorRTLowering.by_lengths`.
    """

    engine: str | None = None
    capability: str | None = None
    gpus: tuple[int, ...] = ()
    gpu_memory: int | None = None
    tensor_parallel: int = 1
    attention_lengths: bool = False


@dataclass(frozen=True)
class Choice:
    """A compiler, and why it was chosen, for people."""

    compiler: EngineCompiler
    why: str


def choose_compiler(asked: Asked) -> Choice:
    """The compiler that was asked for, or the best for this machine.

    Raises:
        PlanError: what was asked for cannot be built here.
    """
    gpus = gpus_at_hand()
    engine, why = (asked.engine, "as asked") if asked.engine else _best(asked, gpus)
    if engine == TENSORRT:
        return Choice(_tensorrt(asked, gpus), why)
    for option, value in (
        ("--compute-capability", asked.capability),
        ("--gpu", asked.gpus),
        ("--gpu-memory", asked.gpu_memory),
        ("--tensor-parallel", asked.tensor_parallel > 1),
        ("--attention lengths", asked.attention_lengths),
    ):
        if value:
            raise PlanError(f"{option}: the engine will be OpenVINO's, for CPUs ({why}); choose --engine tensorrt")
    return Choice(_openvino(), why)


def _best(asked: Asked, gpus: tuple[Gpu, ...]) -> tuple[str, str]:
    if asked.capability:
        return TENSORRT, "--compute-capability names a GPU"
    if not gpus:
        return OPENVINO, "no NVIDIA GPU found"
    if _module() is None:
        return OPENVINO, f"there is an NVIDIA GPU, but no TensorRT; for it: {_INSTALL}"
    return TENSORRT, f"this machine's GPU is {target(gpus[0].capability)}"


def _openvino() -> EngineCompiler:
    try:
        from trident_compiler.openvino_compiler import OpenVINOCompiler  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != OPENVINO:
            raise
        raise PlanError("--engine openvino: it is not installed; pip install 'trident-llm[openvino]'") from None
    return OpenVINOCompiler(this_machine())


def _tensorrt(asked: Asked, gpus: tuple[Gpu, ...]) -> EngineCompiler:
    from trident_compiler.tensorrt_compiler import TensorRTCompiler, TensorRTTarget  # noqa: PLC0415

    if not asked.capability and not gpus:
        raise PlanError(
            "--engine tensorrt: no NVIDIA GPU found here to build for; name one with --compute-capability 8.9 and "
            "--gpu-memory 24GiB, or build where the GPU is (cuda-python must be installed there)"
        )
    found = _module(rtx=asked.capability is not None)
    if found is None:
        raise PlanError(
            f"--compute-capability: TensorRT-RTX builds for GPUs elsewhere, and is not installed; {_INSTALL_RTX}"
            if asked.capability
            else f"--engine tensorrt: it is not installed; {_INSTALL} or {_INSTALL_RTX}"
        )
    if asked.gpus and len(asked.gpus) != asked.tensor_parallel:
        raise PlanError(f"--gpu: names {len(asked.gpus)} GPUs for --tensor-parallel {asked.tensor_parallel}")
    name, trt = found
    capability = None if asked.capability is None else _parse(asked.capability)
    chosen = _gpus(asked, gpus, capability)
    if not chosen and asked.gpu_memory is None:
        raise PlanError(
            "--gpu-memory: no such GPU is here, so its memory must be told, less what others use of it, such as 24GiB"
        )
    free_bytes, memory = _memory(asked, chosen)
    return TensorRTCompiler(
        trt,
        TensorRTTarget(
            name=name,
            capability=capability or chosen[0].capability,
            ordinal=chosen[0].ordinal if chosen else None,
            free_bytes=free_bytes,
            memory=memory,
            num_devices=asked.tensor_parallel,
            by_lengths=asked.attention_lengths,
        ),
    )


def _gpus(asked: Asked, gpus: tuple[Gpu, ...], capability: Capability | None) -> list[Gpu]:
    """The GPUs here that are built for, those named or the first ones; none where they are elsewhere."""
    if not gpus or (capability is not None and not asked.gpus and gpus[0].capability != capability):
        return []
    numbers = asked.gpus or tuple(range(asked.tensor_parallel))
    if missing := [number for number in numbers if number >= len(gpus)]:
        raise PlanError(f"--gpu: there is no GPU {missing[0]}; this machine has {len(gpus)}, counted from 0")
    chosen = [gpus[number] for number in numbers]
    wanted = capability or chosen[0].capability
    if other := [gpu for gpu in chosen if gpu.capability != wanted]:
        raise PlanError(
            f"--gpu: GPU {other[0].ordinal} is {target(other[0].capability)}, the engine would be for {target(wanted)}"
        )
    return chosen


def _memory(asked: Asked, chosen: list[Gpu]) -> tuple[int, str]:
    """Bytes to plan with on each GPU, and which they are, for people."""
    if asked.gpu_memory is not None:
        return asked.gpu_memory, f"of {'the' if asked.tensor_parallel == 1 else 'each'} GPU, as --gpu-memory says"
    numbers = " and on GPU ".join(str(gpu.ordinal) for gpu in chosen)
    return min(gpu.free_bytes for gpu in chosen), f"free on GPU {numbers}"


def _parse(text: str) -> Capability:
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise PlanError(f"--compute-capability: {text!r} is none; give major and minor, such as 8.9")
    return int(match[1]), int(match[2])


def _module(*, rtx: bool = False) -> tuple[str, Any] | None:
    """The first of TensorRT's modules that is installed, and its name in the manifest."""
    for name, module in _MODULES:
        if rtx and name == "tensorrt":
            continue
        try:
            return name, importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return None
