"""The masks that a step waits for, and the threads that fill them.

Owns the order in which jobs are done. Never decides what a mask holds, or what becomes of a late one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from trident_backend.sequences.guide import Guide, Masks
from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract.errors import TridentError


@dataclass(eq=False)
class MaskJob:
    """The masks of one sequence: for its next token, then one after each draft token.

    Args:
        sequence: the sequence.
        guide: its guide.
        position: position of the next token in the sequence.
        draft_ids: the draft tokens.
        masks: `[1 + len(draft_ids), words]`, filled once `is_done`.
        began: when a thread began to fill the masks, by the monotonic clock.
        error: what the client is told if the guide could not fill them.
        is_done: the masks are filled, or there is an error.
    """

    sequence: Sequence
    guide: Guide
    position: int
    draft_ids: tuple[int, ...]
    masks: Masks = field(init=False)
    began: float | None = None
    error: TridentError | None = None
    is_done: bool = False


class LateMasks(NamedTuple):
    """The masks of a late job. They hold no reference to the sequence, so that one that ends meanwhile is freed."""

    position: int
    draft_ids: tuple[int, ...]
    masks: Masks


class MaskThreads:
    """Threads that take jobs from one queue, in order.

    Args:
        name: the end of the threads' names.
        num_threads: how many threads there may be.
        run: does a job; must not raise.
        on_empty: called by a thread that finds no further job.
    """

    def __init__(
        self, name: str, num_threads: int, run: Callable[[MaskJob], None], on_empty: Callable[[], None]
    ) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=f"trident-guides-{name}")
        self._num_threads = num_threads
        self._run = run
        self._on_empty = on_empty
        self._jobs: deque[MaskJob] = deque()

    def put(self, jobs: list[MaskJob], num_threads: int) -> None:
        """Add jobs, and begin them on `num_threads` threads, but on at least one."""
        if jobs:
            self._jobs.extend(jobs)
            self._begin(max(1, num_threads))

    def hurry(self) -> None:
        """Work on the jobs that are left with all threads."""
        self._begin(len(self._jobs))

    def close(self) -> None:
        """Drop the jobs that have not begun, and wait until the threads have ended."""
        self._jobs.clear()
        self._pool.shutdown()

    def _begin(self, num_threads: int) -> None:
        for _ in range(min(num_threads, self._num_threads)):
            self._pool.submit(self._work)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                break
            self._run(job)
        self._on_empty()
