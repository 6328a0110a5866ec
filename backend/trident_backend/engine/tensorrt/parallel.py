"""A network divided among the GPUs of one machine: one process each, the first of them Triton's model instance.

Owns the order in which the ranks load, join, step and end. The leader sends each step to the other ranks and computes
its own part; the network's collectives, run by TensorRT through NCCL, keep them together, and the leader's logits are
whole. No launcher is needed: the leader starts the ranks itself. Ranks on other machines are out of scope.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Protocol

from trident_backend.engine.artifact import Manifest, read_manifest
from trident_backend.engine.protocol import Engine, EngineSpec, StepBatch, StepLogits
from trident_backend.engine.tensorrt import nccl
from trident_backend.engine.tensorrt.messages import Kind, Message, pack_batch
from trident_backend.engine.tensorrt.ranks import COMMAND, Ranks
from trident_ensemble.errors import EngineError

_WATCH_S = 0.1


class Joinable(Protocol):
    """The GPU on which a part waits to join."""

    def select(self) -> None:
        """Make it the calling thread's GPU."""
        ...


#: Gives a part that is ready to join, on its GPU, the communicator for its execution contexts.
Join = Callable[[Joinable], object]
#: Loads one rank's part: folder, manifest, rank, the GPU's ordinal; calls the last once, before anything is run.
PartLoader = Callable[[Path, Manifest, int, int, Join], Engine]


class ParallelEngine:
    """The leader's part and the ranks with the others; to the core it is one engine.

    Args:
        part: of the leader.
        ranks: all others, ready for steps.
        communicator: of the leader.
    """

    def __init__(self, part: Engine, ranks: Ranks, communicator: nccl.Communicator) -> None:
        self._part = part
        self._ranks = ranks
        self._communicator = communicator

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._part.spec

    def execute(self, batch: StepBatch) -> StepLogits:
        """Compute one step on all GPUs. See `Engine.execute`.

        Raises:
            EngineLostError: a rank has failed; no step can be computed any more.
        """
        try:
            self._ranks.broadcast(pack_batch(batch))
            logits = self._part.execute(batch)
        except EngineError as error:
            # The others may be in the middle of the same step, and wait for what will not come.
            self._ranks.fail(f"rank 0: {error}")
            raise self._ranks.lost() from None
        # What was computed without a rank that has gone is no result.
        self._ranks.check()
        return logits

    def close(self) -> None:
        """Free what all ranks hold, and end their processes."""
        self._ranks.stop()
        self._part.close()
        if not self._ranks.has_failed:
            self._communicator.close()
        self._ranks.end()


class RankPart:
    """A part of another rank than the leader, and its communicator.

    Args:
        part: the rank's.
        communicator: the rank's.
    """

    def __init__(self, part: Engine, communicator: nccl.Communicator) -> None:
        self._part = part
        self._communicator = communicator

    def execute(self, batch: StepBatch) -> None:
        """Compute one step; nobody asks for its logits."""
        self._part.execute(batch)

    def close(self) -> None:
        """Free everything."""
        self._part.close()
        self._communicator.close()


def load_leader(
    folder: Path, manifest: Manifest, ordinals: Sequence[int], load_part: PartLoader, command: Sequence[str] = COMMAND
) -> ParallelEngine:
    """Start the ranks, load every part, and join them.

    Args:
        folder: the engine's.
        manifest: its manifest.
        ordinals: the GPU of each rank, the leader's first.
        load_part: loads the leader's part.
        command: starts a rank, see `Rank`.

    Raises:
        ArtifactError: the parts do not fit the GPUs, or NCCL is missing.
        PlanError: a GPU has too little free memory.
        EngineError: a rank failed; says which, and why.
    """
    ranks = Ranks(folder, ordinals, command)
    joined: list[nccl.Communicator] = []

    def join(device: Joinable) -> object:
        ranks.wait_for(Kind.LOADED)
        unique_id = nccl.make_unique_id()
        ranks.broadcast(Message(Kind.JOIN, unique_id))
        joined.append(_join_watched(ranks, device, len(ordinals), unique_id))
        ranks.on_failure(joined[0].abort)
        return joined[0].capsule

    try:
        part = load_part(folder, manifest, 0, ordinals[0], join)
        ranks.wait_for(Kind.READY)
    except BaseException as error:
        failed_before = ranks.has_failed
        ranks.fail(f"rank 0: {error}")
        ranks.end()
        if failed_before:  # and what happened to the leader is what came of it
            ranks.check()
        raise
    return ParallelEngine(part, ranks, joined[0])


def load_rank(folder: Path, rank: int, ordinal: int, unique_id: Callable[[], bytes], load_part: PartLoader) -> RankPart:
    """Load another rank's part than the leader's, and join the others.

    Args:
        folder: the engine's.
        rank: which part.
        ordinal: the GPU.
        unique_id: says that the part is loaded, and waits for the communicator's unique id.
        load_part: loads the part.

    Raises:
        ArtifactError: the part does not fit the GPU, or NCCL is missing.
        PlanError: the GPU has too little free memory.
        EngineError: the GPU, TensorRT or NCCL failed.
    """
    manifest = read_manifest(folder)
    joined: list[nccl.Communicator] = []

    def join(device: Joinable) -> object:
        shared = unique_id()
        device.select()
        joined.append(nccl.join(manifest.tensor_parallel, rank, shared))
        return joined[0].capsule

    part = load_part(folder, manifest, rank, ordinal, join)
    return RankPart(part, joined[0])


def _join_watched(ranks: Ranks, device: Joinable, num_ranks: int, unique_id: bytes) -> nccl.Communicator:
    """Join as rank 0, or stop waiting when another rank cannot; the thread that waits then ends with the process."""
    future: Future[nccl.Communicator] = Future()

    def run() -> None:
        try:
            device.select()
            future.set_result(nccl.join(num_ranks, 0, unique_id))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="trident-join", daemon=True).start()
    while not wait([future], _WATCH_S).done:
        ranks.check()
    return future.result()
