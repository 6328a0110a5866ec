"""A network divided among the GPUs of one machine: one process each, the first of them Triton's model instance.

Owns the order in which the ranks load, join, step and end. The leader sends each step to the other ranks and computes
its own part; the network's collectives, run by TensorRT through NCCL, keep them together, and the leader's logits are
whole. A GPU that waits for a rank that is gone waits for good, and NCCL's way out is none while TensorRT may use the
communicator: the thread that waits is left, the step fails, and the end of the process takes it along. Never needs a
launcher, as the leader starts the ranks itself, and never reaches another machine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from trident_backend.engine.protocol import Engine, EngineSpec, StepBatch, StepLogits, execute
from trident_backend.engine.tensorrt import nccl
from trident_backend.engine.tensorrt.messages import Kind, Message, pack_batch
from trident_backend.engine.tensorrt.rank import COMMAND
from trident_backend.engine.tensorrt.ranks import LoadingLimit, Ranks
from trident_backend.engine.tensorrt.watched_thread import WatchedThread
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import EngineError
from trident_ensemble.contract.manifest import Manifest, read_manifest

#: Seconds that the leader has to free its GPU; and if a rank has failed, as it may wait for it.
_CLOSE_S, _CLOSE_FAILED_S = 10.0, 2.0
#: Loading has a limit that no machine worth serving on needs: so many seconds for what does not depend on the size
#: (processes, imports, NCCL, graphs, and with TensorRT-RTX the compilation of kernels), and one more for so many bytes
#: of plans, which is what a slow network disk brings.
_LOADING_S, _LOADING_BYTES_PER_S = 300.0, 50e6
#: The leader itself is left a little later, so that a rank that did not load is known by then.
_LOADING_GRACE_S = 5.0
#: A step takes milliseconds, of the largest network seconds.
_STEP_S = 120.0


class Joinable(Protocol):
    """The GPU on which a part waits to join the others."""

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
        thread: the part was loaded on it.
        device: the leader's.
        communicator: of the leader.
    """

    def __init__(
        self, part: Engine, ranks: Ranks, thread: WatchedThread, device: Joinable, communicator: nccl.Communicator
    ) -> None:
        self._part = part
        self._ranks = ranks
        self._thread = thread
        self._device = device
        self._communicator = communicator
        self._job: Callable[[], StepLogits] | None = None

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._part.spec

    def submit(self, batch: StepBatch) -> None:
        """Begin one step on all GPUs.

        Raises:
            EngineLostError: a rank has failed; no step can be computed any more.
        """
        try:
            self._ranks.broadcast(pack_batch(batch))
        except EngineError as error:
            raise self._lost(error) from None
        self._job = self._thread.begin(lambda: execute(self._part, batch))

    def collect(self) -> StepLogits:
        """Wait for the submitted step.

        Raises:
            EngineLostError: a rank has failed, or a step has not ended in two minutes, because a rank hangs; no step
                can be computed any more.
        """
        assert self._job is not None, "no step was submitted"
        job, self._job = self._job, None
        try:
            logits = self._thread.wait(job, self._ranks.check, _STEP_S)
            # Sampling waits for no other GPU, and runs on the caller's thread, which has a GPU of its own choice.
            self._device.select()
        except EngineError as error:
            raise self._lost(error) from None
        # What was computed without a rank that has gone is no result.
        self._ranks.check()
        return logits

    def _lost(self, error: EngineError) -> EngineError:
        """End all ranks: the others may be in the middle of the same step, and wait for what will not come."""
        self._ranks.fail(f"rank 0: {error}")
        return self._ranks.lost()

    def close(self) -> None:
        """Free what all ranks hold, and end their processes.

        Takes a limited time: what a GPU does not give back in it, the end of the process frees.
        """
        self._ranks.stop()
        has_failed = self._ranks.has_failed
        check, seconds = (_nothing, _CLOSE_FAILED_S) if has_failed else (self._ranks.check, _CLOSE_S)
        try:
            self._thread.run(self._free, check, seconds)
        except EngineError as error:
            logging.getLogger(__name__).warning("GPU memory is left to the end of the process: %s", error)
            self._ranks.fail(f"rank 0: {error}")  # it waits for a rank, or a rank for it
        self._thread.stop()
        self._ranks.end()

    def _free(self) -> None:
        self._part.close()
        if not self._ranks.has_failed:  # it waits for all of them
            self._communicator.close()


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
        """Compute one step; its logits are not read."""
        execute(self._part, batch)

    def close(self) -> None:
        """Free the part and its communicator."""
        self._part.close()
        self._communicator.close()


def load_leader(
    folder: Path, manifest: Manifest, ordinals: Sequence[int], load_part: PartLoader, command: Sequence[str] = COMMAND
) -> ParallelEngine:
    """Start the ranks, load every part, join them, and return the leader's engine.

    Args:
        folder: the engine's.
        manifest: its manifest.
        ordinals: the GPU of each rank, the leader's first.
        load_part: loads the leader's part.
        command: starts a rank, as for `Rank`.

    Raises:
        ArtifactError: the parts do not fit the GPUs, or NCCL is missing.
        PlanError: a GPU has too little free memory.
        EngineError: a rank failed, or did not load in time; says which, and why.
    """
    limit = LoadingLimit(_loading_limit_s(folder, len(ordinals)))
    ranks = Ranks(folder, ordinals, command)
    thread = WatchedThread("trident-leader-gpu")
    joined: list[tuple[Joinable, nccl.Communicator]] = []
    are_joining = threading.Event()

    def join(device: Joinable) -> object:
        ranks.wait_for(Kind.LOADED, limit)
        unique_id = nccl.make_unique_id()
        ranks.broadcast(Message(Kind.JOIN, unique_id))
        are_joining.set()
        joined.append((device, _join(device, len(ordinals), 0, unique_id)))
        return joined[0][1].capsule

    try:
        part = thread.run(
            lambda: load_part(folder, manifest, 0, ordinals[0], join), ranks.check, limit.seconds + _LOADING_GRACE_S
        )
        ranks.wait_for(Kind.READY, limit)
    except BaseException as error:
        failed_before = ranks.has_failed
        hanging = _hanging(ranks, ordinals[0], limit, are_joining=are_joining.is_set())
        ranks.fail(hanging or f"rank 0: {error}")
        ranks.end()
        _leave(thread)
        if failed_before or hanging:  # and what happened to the leader is what came of it
            ranks.check()
        raise
    return ParallelEngine(part, ranks, thread, *joined[0])


def _hanging(ranks: Ranks, ordinal: int, limit: LoadingLimit, *, are_joining: bool) -> str:
    """Return the names of those that may hang when the time for loading is over; empty before that."""
    if limit.left_s():
        return ""
    leader = f"rank 0 (GPU {ordinal})"
    if not are_joining:
        return f"{leader} did not load within {limit.seconds:.0f} s"
    names = " and ".join([leader, *ranks.not_ready()])
    return f"{names} did not become ready for steps within {limit.seconds:.0f} s; one of them hangs"


def load_rank(folder: Path, rank: int, ordinal: int, unique_id: Callable[[], bytes], load_part: PartLoader) -> RankPart:
    """Load the part of a rank other than the leader, join the others, and return it.

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
        joined.append(_join(device, manifest.tensor_parallel, rank, unique_id()))
        return joined[0].capsule

    part = load_part(folder, manifest, rank, ordinal, join)
    return RankPart(part, joined[0])


def _loading_limit_s(folder: Path, num_ranks: int) -> float:
    """Return the seconds in which all ranks together must load; they read from one disk."""
    plans = (folder / layout.plan_file(rank, num_ranks) for rank in range(num_ranks))
    return _LOADING_S + sum(plan.stat().st_size for plan in plans if plan.is_file()) / _LOADING_BYTES_PER_S


def _join(device: Joinable, num_ranks: int, rank: int, unique_id: bytes) -> nccl.Communicator:
    """Join the others, on the calling thread's GPU."""
    device.select()
    return nccl.join(num_ranks, rank, unique_id)


def _leave(thread: WatchedThread) -> None:
    """Leave what was begun to end by itself where it does not wait for others; the rest ends with the process."""
    with suppress(EngineError):
        thread.run(_nothing, _nothing, _CLOSE_FAILED_S)
    thread.stop()


def _nothing() -> None:
    """Check nothing."""
