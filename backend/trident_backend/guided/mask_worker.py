"""Fills the masks of a step's rows while the engine computes their logits.

Owns the threads that do it, and what a step does without a mask that is not ready: its sequence sits the step out, and
gets its token when the mask is there. A guide whose mask has been slow waits for its next one behind others of its
kind, so that it holds up no others. Never touches a sequence but to read its guide, and that only between `begin` and
the end of the mask.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from trident_backend.sequences.guide import MASK_WORD, Guide, Masks, RowMasks
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError, TridentError
from trident_ensemble.contract.failures import internal_error


@dataclass(eq=False)
class _Job:
    """The masks of one sequence: for its next token, then one after each guess.

    Args:
        sequence: whose.
        place: of the next token.
        draft_ids: the guesses.
        masks: `[1 + len(draft_ids), words]`, filled once `is_done`.
        began: when a thread began with it, by the monotonic clock.
        error: what its client is told if the guide could not fill them.
    """

    sequence: Sequence
    guide: Guide
    place: int
    draft_ids: tuple[int, ...]
    masks: Masks = field(init=False)
    began: float | None = None
    error: TridentError | None = None
    is_done: bool = False


class _Filled(NamedTuple):
    """The masks of a job that were late. Names no sequence, so that one which ends instead is not kept by them."""

    place: int
    draft_ids: tuple[int, ...]
    masks: Masks


class _Lane:
    """Jobs in order, and the threads that take them."""

    def __init__(self, name: str, num_threads: int, run: Callable[[_Job], None], on_empty: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=f"trident-guides-{name}")
        self._num_threads = num_threads
        self._run = run
        self._on_empty = on_empty
        self._jobs: deque[_Job] = deque()

    def put(self, jobs: list[_Job], num_threads: int) -> None:
        """Add jobs, and begin on as many threads as they are worth."""
        if jobs:
            self._jobs.extend(jobs)
            self._begin(max(1, num_threads))

    def hurry(self) -> None:
        """Take to the jobs that are left on all threads."""
        self._begin(len(self._jobs))

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

    def close(self) -> None:
        self._jobs.clear()
        self._pool.shutdown()


class MaskWorker:
    """Masks, off the engine's thread. Used by that one thread.

    Args:
        vocab_size: width of a row of logits.
        num_threads: for guides that are not slow; by default one less than there are cores, 2 to 8. Slow ones share
            one more.
        grace_s: how long a step waits for masks that are not of slow guides after its logits are there, in seconds.
        limit_s: how long a thread may take for one mask, in seconds; beyond it the sequence ends.
    """

    def __init__(
        self, vocab_size: int, *, num_threads: int | None = None, grace_s: float = 0.005, limit_s: float = 2.0
    ) -> None:
        self._num_words = -(-vocab_size // MASK_WORD)
        self._grace_s = grace_s
        self._limit_s = limit_s
        self._done = Condition()
        self._lane = _Lane("fast", num_threads or default_threads(), self._fill, self._tell)
        self._slow_lane = _Lane("slow", 1, self._fill, self._tell)
        self._seconds = 0.0
        self._slow: WeakSet[Sequence] = WeakSet()
        self._late: dict[Sequence, _Job] = {}
        self._ready: WeakKeyDictionary[Sequence, _Filled] = WeakKeyDictionary()

    @property
    def late(self) -> frozenset[Sequence]:
        """The sequences that wait for a mask. They must not be computed, nor their guides advance, until `take_ready`
        returns them."""
        return frozenset(self._late)

    def begin(self, rows: Iterable[Row]) -> Callable[[], RowMasks | None]:
        """Start on the masks of a step.

        Args:
            rows: the step's; those that choose for a sequence with a guide get a mask.

        Returns:
            what waits for the masks and returns those that are there in time, None if there are none; the sequences of
            all others are in `late` then, those of guides that failed among them. It must be called before a guide
            advances.
        """
        places: list[int] = []
        jobs: dict[Sequence, _Job] = {}
        num_free = 0
        for index, row in enumerate(rows):
            guide = row.sequence.guide
            if guide is None or row.is_scored:
                num_free += 1
                continue
            places.append(index)
            # The last row of a sequence has all of its guesses.
            jobs[row.sequence] = _Job(row.sequence, guide, row.position - len(row.draft_ids), row.draft_ids)
        if not jobs:
            return _nothing
        words = np.empty((len(places), self._num_words), np.uint32)
        end = 0
        for job in jobs.values():
            job.masks = words[end : end + 1 + len(job.draft_ids)]
            end += 1 + len(job.draft_ids)
        new = [job for job in jobs.values() if not self._reuse(job)] if self._ready else [*jobs.values()]
        slow = [job for job in new if job.sequence in self._slow] if self._slow else []
        quick = [job for job in new if job.sequence not in self._slow] if slow else new
        self._slow_lane.put(slow, 1)
        self._lane.put(quick, int(len(quick) * self._seconds / _WORTH_S))

        def wait() -> RowMasks | None:
            can_go_on = num_free > 0 or len(new) < len(jobs)
            # A slow one costs nobody else its grace; it is waited for where nobody gets a token without it.
            self._wait(quick if quick or can_go_on else new, can_go_on=can_go_on)
            late = {job.sequence: job for job in new if not job.is_done or job.error is not None}
            rows = np.array(places, np.intp)
            if not late:
                return RowMasks(rows, words)
            self._late.update(late)
            in_time = np.repeat([sequence not in late for sequence in jobs], [len(job.masks) for job in jobs.values()])
            return RowMasks(rows[in_time], words[in_time]) if in_time.any() else None

        return wait

    def _reuse(self, job: _Job) -> bool:
        """Take the masks that have come late for the same place, if there are any."""
        ready = self._ready.pop(job.sequence, None)
        if ready is None or ready.place != job.place:
            return False
        # Guesses other than those the mask was made for get none, and so are not accepted.
        num_rows = len(job.masks) if ready.draft_ids == job.draft_ids else 1
        job.masks[:num_rows] = ready.masks[:num_rows]
        job.masks[num_rows:] = 0
        job.is_done = True
        return True

    def take_ready(self) -> list[tuple[Sequence, TridentError | None]]:
        """Return the sequences whose late mask is there by now, and those that end without it, with their error.

        A sequence that has ended by itself is forgotten.
        """
        taken: list[tuple[Sequence, TridentError | None]] = []
        now = time.monotonic()
        for sequence, job in [*self._late.items()]:
            if job.is_done:
                if job.error is None:
                    # A copy: the array has the masks of the whole step.
                    self._ready[sequence] = _Filled(job.place, job.draft_ids, job.masks.copy())
                taken.append((sequence, job.error))
            elif job.began is not None and now - job.began > self._limit_s:
                problem = f"is too costly to follow: a mask took more than {self._limit_s:g} s"
                taken.append((sequence, RequestError(tensors.GUIDE.name, problem)))
            elif sequence.finish_reason is None:
                continue
            del self._late[sequence]
        return taken

    def wait_late(self) -> bool:
        """Wait a moment for a late mask, and return whether any is still waited for or has come."""
        if not self._late:
            return False
        with self._done:
            self._done.wait_for(lambda: any(job.is_done for job in self._late.values()), _MOMENT_S)
        return True

    def close(self) -> None:
        """Let the threads end."""
        self._lane.close()
        self._slow_lane.close()

    def _wait(self, jobs: list[_Job], *, can_go_on: bool) -> None:
        """Wait for all for a grace; then for one, if without it nobody in the step would get a token."""

        def all_done() -> bool:
            return all(job.is_done for job in jobs)

        if all_done():
            return
        self._lane.hurry()
        with self._done:
            if self._done.wait_for(all_done, self._grace_s) or can_go_on:
                return
            self._done.wait_for(lambda: any(job.is_done for job in jobs), _ALONE_S)

    def _fill(self, job: _Job) -> None:
        job.began = time.monotonic()
        try:
            if job.sequence.finish_reason is None:
                job.guide.fill(job.draft_ids, job.masks)
        except BaseException as cause:  # whatever it is, also a library's panic, it is its own sequence's alone
            job.error = internal_error("this request's guide failed on its output", cause)
        seconds = time.monotonic() - job.began
        is_slow = seconds > _SLOW_S
        if is_slow:
            self._slow.add(job.sequence)
        elif self._slow:
            self._slow.discard(job.sequence)
        self._seconds += (min(seconds, _SLOW_S) - self._seconds) * _NEWEST_SHARE
        job.is_done = True
        if is_slow:
            self._tell()

    def _tell(self) -> None:
        """Wake whoever waits for masks. Not for each one: that would take longer than the mask."""
        with self._done:
            self._done.notify_all()


def default_threads() -> int:
    """Return how many threads fill masks on this machine."""
    return max(2, min(8, (os.cpu_count() or 1) - 1))


def _nothing() -> None:
    return None


#: A mask that takes longer is slow; an ordinary one takes a tenth of it or less. One that only had to wait for a core
#: is taken for slow once, which does it no harm.
_SLOW_S = 0.004
#: A further thread is worth its while for so much to compute, and how much the newest mask counts in what one takes.
_WORTH_S = 0.001
_NEWEST_SHARE = 0.05
#: A step in which nobody gets a token otherwise waits so long for a mask.
_ALONE_S = 0.1
#: Commands to the core wait no longer than this when only masks are waited for.
_MOMENT_S = 0.01
