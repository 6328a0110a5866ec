"""What collectives compute, and a group of threads that run them: one thread stands for one rank."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from tests.tensorrt.number_formats import Array


def combined(operation: str, reduction: str, arrays: Sequence[Array]) -> Array:
    """What every rank gets of a collective over `arrays`, one of each rank."""
    if operation == "ALL_GATHER":
        return np.concatenate(arrays)
    assert (operation, reduction) == ("ALL_REDUCE", "SUM")
    return np.asarray(np.sum(arrays, axis=0, dtype=arrays[0].dtype))


class ThreadGroup:
    """Collectives among threads, one a rank."""

    def __init__(self, num_ranks: int) -> None:
        self._arrays: list[Array] = [np.empty(0)] * num_ranks
        self._barrier = threading.Barrier(num_ranks, timeout=60)

    def collective(self, rank: int, operation: str, reduction: str, array: Array) -> Array:
        """What `rank` gets when all of them have come."""
        self._arrays[rank] = array
        self._barrier.wait()
        result = combined(operation, reduction, self._arrays)
        self._barrier.wait()
        return result

    def abort(self) -> None:
        """Let nobody wait any more."""
        self._barrier.abort()
