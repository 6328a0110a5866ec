"""The GPUs that an engine is built for, by what was asked for and what this machine has, and their memory.

Owns what a build may ask for, and the refusals about GPUs that are not there or are of another kind. Never chooses a
compiler.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trident_compiler.planning.memory_plan import TakenMemory
from trident_compiler.tensorrt.gpu import Capability, Gpu, Gpus, free_bytes, total_bytes
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import sm_target

_CAPABILITY = re.compile(r"(\d{1,3})\.(\d)")


@dataclass(frozen=True)
class BuildRequest:
    """A build as the user asked for it; None and empty are the defaults.

    Args:
        engine: openvino, tensorrt or cuda.
        capability: a GPU's compute capability to build for, such as `8.9`.
        gpus: the GPUs that the engine will run on; they may be another machine's where both `capability` and
            `gpu_memory` are given.
        gpu_memory: bytes to plan with, of each GPU, instead of what it has free.
        tensor_parallel: GPUs to divide the network among.
        attention_lengths: `by_lengths` of `TensorRTLowering`.
        fp8_cache: `fp8_cache` of `CudaTarget`.
        taken: memory that is left to others, which may run already.
    """

    engine: str | None = None
    capability: str | None = None
    gpus: tuple[int, ...] = ()
    gpu_memory: int | None = None
    tensor_parallel: int = 1
    attention_lengths: bool = False
    fp8_cache: bool = False
    taken: TakenMemory = field(default_factory=TakenMemory)


@dataclass(frozen=True)
class ChosenGpus:
    """The GPUs of an engine.

    Args:
        capability: of all of them.
        here: those of this machine to build on; fewer, or none, where they are elsewhere.
        serving: the numbers of those that will serve it, as CUDA counts them there.
        free_bytes: memory to plan with, of each.
        memory: which memory that is, for people.
    """

    capability: Capability
    here: tuple[Gpu, ...]
    serving: tuple[int, ...]
    free_bytes: int
    memory: str


def choose_gpus(asked: BuildRequest, found: Gpus, engine: str) -> ChosenGpus:
    """Return the GPUs that an engine is for.

    Args:
        asked: says which.
        found: of this machine.
        engine: what was asked for, or chosen, for people.

    Raises:
        BuildError: there is none, they are of different kinds, or their memory is not known.
    """
    if not asked.capability and not found.found:
        raise BuildError(
            f"--engine {engine}: {found.why_none}; build where the GPU is, or name one with --compute-capability 8.9 "
            "and --gpu-memory 24GiB"
        )
    if asked.gpus and len(asked.gpus) != asked.tensor_parallel:
        raise BuildError(f"--gpu: names {len(asked.gpus)} GPUs for --tensor-parallel {asked.tensor_parallel}")
    capability = _parse(asked.capability) if asked.capability else None
    chosen = _to_build_for(asked, found.found, capability)
    all_here = len(chosen) == asked.tensor_parallel
    first_ones = tuple(gpu.ordinal for gpu in chosen) if all_here else tuple(range(asked.tensor_parallel))
    serving = asked.gpus or first_ones
    return ChosenGpus(capability or chosen[0].capability, tuple(chosen), serving, *_memory(asked, chosen, serving))


def room(free: int, total: int, taken: int) -> int:
    """Return the bytes to plan with: what is free already lacks the memory of those others that run."""
    return max(0, min(free, total - taken))


def _to_build_for(asked: BuildRequest, here: tuple[Gpu, ...], capability: Capability | None) -> list[Gpu]:
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
        room(free_bytes(gpu.ordinal), total_bytes(gpu.ordinal), asked.taken.gpus.get(gpu.ordinal, 0)) for gpu in chosen
    ]
    return min(rooms), f"free on GPU {numbers}"


def _parse(text: str) -> Capability:
    """Return the compute capability that a text such as `8.9` stands for.

    Raises:
        BuildError: it is none.
    """
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise BuildError(
            f"--compute-capability: {text!r} is not a compute capability; give major and minor, such as 8.9"
        )
    return int(match[1]), int(match[2])
