"""Watches when sequences must have ended.

Owns the order of deadlines and the errors of those that are missed. Pure: time is passed in; never ends a sequence
itself.
"""

from __future__ import annotations

import heapq
import math
from weakref import ref

from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract.errors import DeadlineError, TooLateError


class Deadlines:
    """The deadlines of sequences that have not ended.

    They are referred to weakly. Most sequences end long before their deadlines, and what they hold (a guide, and so its
    grammar's memory) must not be held until then.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ref[Sequence]]] = []
        self._purge_size = _MIN_PURGE_SIZE

    def add(self, sequence: Sequence) -> None:
        """Watch a sequence, which the caller must hold until it ends."""
        if sequence.deadline == math.inf:
            return
        if len(self._heap) >= self._purge_size:
            self._heap = [entry for entry in self._heap if _unended(entry[2]) is not None]
            heapq.heapify(self._heap)
            self._purge_size = max(_MIN_PURGE_SIZE, 2 * len(self._heap))
        heapq.heappush(self._heap, (sequence.deadline, sequence.sequence_id, ref(sequence)))

    @property
    def next(self) -> float:
        """The nearest deadline; infinity if there is none."""
        while self._heap and _unended(self._heap[0][2]) is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take_passed(self, now: float) -> list[Sequence]:
        """Return the sequences whose deadline has passed, and stop watching them."""
        passed = []
        while self.next <= now:
            sequence = _unended(heapq.heappop(self._heap)[2])
            if sequence is not None:
                passed.append(sequence)
        return passed


def _unended(reference: ref[Sequence]) -> Sequence | None:
    sequence = reference()
    return sequence if sequence is not None and sequence.finish_reason is None else None


def unreachable(sequence: Sequence, earliest: float) -> TooLateError:
    """Return the error of a sequence whose first token cannot come before `earliest`."""
    timeout, needed = sequence.deadline - sequence.arrived_at, earliest - sequence.arrived_at
    return TooLateError(
        f"timeout_ms: {timeout * 1000:.0f} ms cannot be met: this prompt, and what waits before it, take "
        f"{needed * 1000:.0f} ms; try again later, or with a longer timeout"
    )


def missed(sequence: Sequence) -> DeadlineError:
    """Return the error of a sequence whose deadline has passed."""
    timeout = sequence.deadline - sequence.arrived_at
    where = "waiting" if sequence.first_scheduled_at is None else f"with {sequence.num_output_tokens} tokens generated"
    return DeadlineError(f"timeout_ms: {timeout * 1000:.0f} ms have passed, {where}")


#: Watched sequences below which those that have ended are not looked for.
_MIN_PURGE_SIZE = 64
