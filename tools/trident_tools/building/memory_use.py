"""The memory that the models of one repository take side by side.

Owns the sums, by the manifests of the engines, and the refusal where they are more than there is. What one engine needs
alone is decided where it is built and where it is loaded, never here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trident_compiler.planning.machine import this_machine
from trident_compiler.planning.memory_plan import TakenMemory, size
from trident_compiler.tensorrt.gpu import free_bytes, total_bytes
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.manifest import Manifest


@dataclass(frozen=True)
class MemoryUse:
    """The memory of one model while it is served.

    Args:
        name: of its ensemble.
        num_bytes: on each of its GPUs, or of this machine.
        gpus: by CUDA's numbers; empty for an engine on CPUs.
    """

    name: str
    num_bytes: int
    gpus: tuple[int, ...]


def memory_use(name: str, manifest: Manifest, gpus: Sequence[int]) -> MemoryUse:
    """Return what an engine takes.

    Args:
        name: of its ensemble.
        manifest: the engine's.
        gpus: those of its core's settings; empty for the first ones.
    """
    on_gpus = tuple(gpus) or tuple(range(manifest.tensor_parallel))
    return MemoryUse(name, manifest.memory_bytes, on_gpus if manifest.runs_on_gpus else ())


def taken_memory(uses: Sequence[MemoryUse]) -> TakenMemory:
    """Return the memory that models take together."""
    gpus: dict[int, int] = {}
    for use in uses:
        for gpu in use.gpus:
            gpus[gpu] = gpus.get(gpu, 0) + use.num_bytes
    return TakenMemory(sum(use.num_bytes for use in uses if not use.gpus), gpus)


def describe_taken(uses: Sequence[MemoryUse], gpus: Sequence[int]) -> str:
    """Return which models take what of the memory of these GPUs, or of this machine if there are none, in one line."""
    return ", ".join(f"{use.name} {size(use.num_bytes)}" for use in _sharing(uses, gpus))


def check_memory(uses: Sequence[MemoryUse]) -> None:
    """Refuse models that do not fit into memory together.

    Raises:
        ServerError: gives the numbers, and says what to do.
        BuildError: CUDA does not say how much memory a GPU has.
    """
    taken = taken_memory(uses)
    if len(_sharing(uses, ())) > 1:
        _check(uses, (), taken.cpu, this_machine().free_bytes, "memory is free")
    for gpu, num_bytes in taken.gpus.items():
        if len(_sharing(uses, (gpu,))) > 1:
            _check(uses, (gpu,), num_bytes, total_bytes(gpu), f"memory are all that GPU {gpu} has")


def check_room(use: MemoryUse) -> None:
    """Refuse an engine for which there is no room beside what runs now.

    On GPUs this takes some of their memory for as long as the process lives.

    Raises:
        ServerError: gives the numbers, and says what to do.
        BuildError: CUDA does not say how much memory is free.
    """
    places = [(free_bytes(gpu), f"GPU {gpu} has") for gpu in use.gpus] or [(this_machine().free_bytes, "there is")]
    for room, where in places:
        if use.num_bytes > room:
            raise ServerError(
                f"{use.name} takes {size(use.num_bytes)}, and {where} {size(room)} of free memory beside what runs; "
                "build it with a smaller --kv-cache, or serve it on another machine and move the callers with "
                "`trident rollout`"
            )


def _check(uses: Sequence[MemoryUse], gpus: Sequence[int], taken: int, room: int, what: str) -> None:
    if taken > room:
        raise ServerError(
            f"--repository: its models take {size(taken)} together ({describe_taken(uses, gpus)}), and {size(room)} of "
            f"{what}; build some of them again with a smaller --kv-cache, or serve them from repositories of their own "
            "on other machines"
        )


def _sharing(uses: Sequence[MemoryUse], gpus: Sequence[int]) -> list[MemoryUse]:
    return [use for use in uses if set(use.gpus) & set(gpus) or not (use.gpus or gpus)]
