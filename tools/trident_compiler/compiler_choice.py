"""The choice of the compiler that builds an engine, and of its target.

Owns the choice and its reasons. Never imports a compiler that is not chosen, so that a machine needs only its own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from trident_compiler.compiler import EngineCompiler
from trident_compiler.model_folder import Checkpoint, ExportedModel, Opened
from trident_compiler.planning.machine import Machine, machine_bytes, this_machine
from trident_compiler.planning.memory_plan import TakenMemory
from trident_compiler.tensorrt.gpu import Capability, Gpu, Gpus, free_bytes, gpus_at_hand, total_bytes
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import sm_target

OPENVINO, TENSORRT = "openvino", "tensorrt"
#: TensorRT's Python modules by the compiler's name in the manifest, best first.
_MODULES = (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt_rtx"), ("tensorrt_rtx", "tensorrt_rtx_bindings"))
_INSTALL = "pip install 'trident-llm[tensorrt]'"
_INSTALL_RTX = "pip install 'trident-llm[tensorrt-rtx]'"
_CAPABILITY = re.compile(r"(\d{1,3})\.(\d)")


@dataclass(frozen=True)
class BuildRequest:
    """A build as the user asked for it; None and empty are the defaults.

    Args:
        engine: openvino or tensorrt.
        capability: a GPU's compute capability to build for, such as `8.9`.
        gpus: the GPUs that the engine will run on; they may be another machine's where both `capability` and
            `gpu_memory` are given.
        gpu_memory: bytes to plan with, of each GPU, instead of what it has free.
        tensor_parallel: GPUs to divide the network among.
        attention_lengths: `by_lengths` of `TensorRTLowering`.
        taken: memory that is left to others, which may run already.
    """

    engine: str | None = None
    capability: str | None = None
    gpus: tuple[int, ...] = ()
    gpu_memory: int | None = None
    tensor_parallel: int = 1
    attention_lengths: bool = False
    taken: TakenMemory = field(default_factory=TakenMemory)


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
    if asked.engine == TENSORRT:
        return _tensorrt(asked, here, "as asked")
    if asked.capability:
        return _tensorrt(asked, here, "--compute-capability names a GPU")
    if not here.found:
        return _openvino(asked, here.why_none)
    if _module() is None:
        return _openvino(asked, f"there is an NVIDIA GPU, but no TensorRT; for it: {_INSTALL}")
    return _tensorrt(asked, here, None)


def choose_exported_compiler(asked: BuildRequest) -> CompilerChoice[ExportedModel]:
    """Return the compiler of networks that were exported to OpenVINO, which is OpenVINO.

    Raises:
        BuildError: another was asked for.
    """
    why = "the model was exported to OpenVINO"
    if asked.engine == TENSORRT:
        raise BuildError(f"--engine tensorrt: {why}, and is built by it alone; build from the original checkpoint")
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
    for option, value in (
        ("--compute-capability", asked.capability),
        ("--gpu", asked.gpus),
        ("--gpu-memory", asked.gpu_memory),
        ("--tensor-parallel", asked.tensor_parallel > 1),
        ("--attention lengths", asked.attention_lengths),
    ):
        if value:
            raise BuildError(f"{option}: the engine will be OpenVINO's, for CPUs ({why}); choose --engine tensorrt")
    machine = this_machine()
    return replace(machine, free_bytes=_room(machine.free_bytes, machine_bytes(), asked.taken.cpu))


def _room(free: int, total: int, taken: int) -> int:
    """Return the bytes to plan with: what is free already lacks the memory of those others that run."""
    return max(0, min(free, total - taken))


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

    if not asked.capability and not here.found:
        raise BuildError(
            f"--engine tensorrt: {here.why_none}; build where the GPU is, or name one with --compute-capability 8.9 "
            "and --gpu-memory 24GiB"
        )
    if asked.gpus and len(asked.gpus) != asked.tensor_parallel:
        raise BuildError(f"--gpu: names {len(asked.gpus)} GPUs for --tensor-parallel {asked.tensor_parallel}")
    capability = _parse(asked.capability) if asked.capability else None
    chosen = _gpus(asked, here.found, capability)
    found = _module(rtx=not chosen)
    if found is None:
        raise BuildError(
            f"--engine tensorrt: it is not installed; {_INSTALL} or {_INSTALL_RTX}"
            if chosen
            else f"--compute-capability: TensorRT-RTX builds for GPUs elsewhere, and is not installed; {_INSTALL_RTX}"
        )
    name, trt = found
    all_here = len(chosen) == asked.tensor_parallel
    first_ones = tuple(gpu.ordinal for gpu in chosen) if all_here else tuple(range(asked.tensor_parallel))
    serving = asked.gpus or first_ones
    num_bytes, memory = _memory(asked, chosen, serving)
    built_for = TensorRTTarget(
        name=name,
        capability=capability or chosen[0].capability,
        ordinal=chosen[0].ordinal if chosen else None,
        free_bytes=num_bytes,
        memory=memory,
        num_devices=asked.tensor_parallel,
        by_lengths=asked.attention_lengths,
    )
    return CompilerChoice(
        TensorRTCompiler(trt, built_for),
        why or f"this machine's GPU is {sm_target(built_for.capability)}",
        serving,
    )


def _gpus(asked: BuildRequest, here: tuple[Gpu, ...], capability: Capability | None) -> list[Gpu]:
    """Return the GPUs of this machine to build for: those named, or the first ones of the kind.

    They are fewer than asked for, or none, where the engine's GPUs are elsewhere.
    """
    if asked.gpus and here and (capability is None or asked.gpu_memory is None):
        return _named(asked.gpus, here, capability)
    wanted = capability or here[0].capability
    alike = [gpu for gpu in here if gpu.capability == wanted]
    return sorted(alike, key=lambda gpu: gpu.ordinal not in asked.gpus)[: asked.tensor_parallel]


def _named(numbers: tuple[int, ...], here: tuple[Gpu, ...], capability: Capability | None) -> list[Gpu]:
    if missing := [number for number in numbers if number >= len(here)]:
        raise BuildError(f"--gpu: there is no GPU {missing[0]}; this machine has {len(here)}, counted from 0")
    chosen = [here[number] for number in numbers]
    wanted = capability or chosen[0].capability
    if other := [gpu for gpu in chosen if gpu.capability != wanted]:
        elsewhere = "; for a GPU elsewhere give --gpu-memory" if capability else ""
        raise BuildError(
            f"--gpu: GPU {other[0].ordinal} is {sm_target(other[0].capability)}, the engine would be for "
            f"{sm_target(wanted)}{elsewhere}"
        )
    return chosen


def _memory(asked: BuildRequest, chosen: list[Gpu], serving: tuple[int, ...]) -> tuple[int, str]:
    """Return the bytes to plan with on each GPU, and a text for people that says which memory they are."""
    if asked.gpu_memory is not None:
        num_bytes = max(0, asked.gpu_memory - asked.taken.most_of(serving))
        return num_bytes, f"of {'the' if asked.tensor_parallel == 1 else 'each'} GPU, as --gpu-memory says"
    if len(chosen) < asked.tensor_parallel:
        raise BuildError(
            f"--gpu-memory: {asked.tensor_parallel} such GPUs are wanted and {len(chosen)} are here, so their memory "
            "must be told, less what others use of it, such as 24GiB"
        )
    numbers = " and on GPU ".join(str(gpu.ordinal) for gpu in chosen)
    rooms = [
        _room(free_bytes(gpu.ordinal), total_bytes(gpu.ordinal), asked.taken.gpus.get(gpu.ordinal, 0)) for gpu in chosen
    ]
    return min(rooms), f"free on GPU {numbers}"


def _parse(text: str) -> Capability:
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise BuildError(
            f"--compute-capability: {text!r} is not a compute capability; give major and minor, such as 8.9"
        )
    return int(match[1]), int(match[2])


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
