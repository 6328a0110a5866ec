"""The masks of a step's rows, filled while the engine computes their logits.

Owns the decision how long a step waits for its masks. A sequence whose mask is late sits out the step, and gets its
token when the mask is there. A guide that has been slow queues with other slow guides, so that it delays no others.
Never touches a sequence except to read its guide, between `begin` and the end of the mask.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from threading import Condition
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from trident_backend.guided.mask_jobs import LateMasks, MaskJob, MaskThreads
from trident_backend.sequences.guide import MASK_WORD, RowMasks
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import InvalidGuideError, TridentError
from trident_ensemble.contract.failures import internal_error


class MaskWorker:
    """Fills masks on threads of its own. Only the engine's thread may call it.

    Args:
        vocab_size: width of a row of logits.
        num_threads: threads for guides that are not slow; by default one less than there are cores, from 2 to 8. Slow
            guides share one more thread.
        grace_s: seconds that a step waits, once its logits are there, for masks of guides that are not slow.
        limit_s: seconds that one mask may take; a sequence whose mask takes longer ends.
    """

    def __init__(
        self, vocab_size: int, *, num_threads: int | None = None, grace_s: float = 0.005, limit_s: float = 2.0
    ) -> None:
        self._num_words = -(-vocab_size // MASK_WORD)
        self._grace_s = grace_s
        self._limit_s = limit_s
        self._done = Condition()
        self._threads = MaskThreads("fast", num_threads or default_threads(), self._fill, self._notify)
        self._slow_thread = MaskThreads("slow", 1, self._fill, self._notify)
        self._seconds = 0.0
        self._slow: WeakSet[Sequence] = WeakSet()
        self._late: dict[Sequence, MaskJob] = {}
        self._ready: WeakKeyDictionary[Sequence, LateMasks] = WeakKeyDictionary()

    @property
    def late(self) -> frozenset[Sequence]:
        """The sequences that wait for a mask.

        They must not be computed, nor their guides advance, until `take_ready` returns them.
        """
        return frozenset(self._late)

    def begin(self, rows: Iterable[Row]) -> Callable[[], RowMasks | None]:
        """Begin to fill the masks of a step.

        Args:
            rows: the rows of the step; those that choose a token for a sequence with a guide get a mask.

        Returns:
            a function that waits for the masks and returns those that are there in time, or None if there are none.
            The sequences of all other masks, also of guides that failed, are in `late` afterwards. It must be called
            before any guide advances.
        """
        guided_rows: list[int] = []
        jobs: dict[Sequence, MaskJob] = {}
        num_free = 0
        for index, row in enumerate(rows):
            guide = row.sequence.guide
            if guide is None or row.is_scored:
                num_free += 1
                continue
            guided_rows.append(index)
            # The last row of a sequence has all of its draft tokens.
            jobs[row.sequence] = MaskJob(row.sequence, guide, row.position - len(row.draft_ids), row.draft_ids)
        if not jobs:
            return _nothing
        words = np.empty((len(guided_rows), self._num_words), np.uint32)
        end = 0
        for job in jobs.values():
            job.masks = words[end : end + 1 + len(job.draft_ids)]
            end += 1 + len(job.draft_ids)
        new = [job for job in jobs.values() if not self._reuse(job)] if self._ready else [*jobs.values()]
        slow = [job for job in new if job.sequence in self._slow] if self._slow else []
        quick = [job for job in new if job.sequence not in self._slow] if slow else new
        self._slow_thread.put(slow, 1)
        self._threads.put(quick, int(len(quick) * self._seconds / _WORTH_S))

        def wait() -> RowMasks | None:
            can_go_on = num_free > 0 or len(new) < len(jobs)
            # A slow mask delays no other sequence; a step waits for it only if no sequence gets a token otherwise.
            self._wait(quick if quick or can_go_on else new, can_go_on=can_go_on)
            late = {job.sequence: job for job in new if not job.is_done or job.error is not None}
            rows = np.array(guided_rows, np.intp)
            if not late:
                return RowMasks(rows, words)
            self._late.update(late)
            in_time = np.repeat([sequence not in late for sequence in jobs], [len(job.masks) for job in jobs.values()])
            return RowMasks(rows[in_time], words[in_time]) if in_time.any() else None

        return wait

    def _reuse(self, job: MaskJob) -> bool:
        """Take masks that came late for the same position; return whether there were any."""
        ready = self._ready.pop(job.sequence, None)
        if ready is None or ready.position != job.position:
            return False
        # Draft tokens other than those that the masks were made for get empty masks, and so are rejected.
        num_rows = len(job.masks) if ready.draft_ids == job.draft_ids else 1
        job.masks[:num_rows] = ready.masks[:num_rows]
        job.masks[num_rows:] = 0
        job.is_done = True
        return True

    def take_ready(self) -> list[tuple[Sequence, TridentError | None]]:
        """Return the sequences whose late mask has arrived, and those that end without one, with their error.

        A sequence that has ended for another reason is forgotten.
        """
        taken: list[tuple[Sequence, TridentError | None]] = []
        now = time.monotonic()
        for sequence, job in [*self._late.items()]:
            if job.is_done:
                if job.error is None:
                    # Copied, because the array holds the masks of the whole step.
                    self._ready[sequence] = LateMasks(job.position, job.draft_ids, job.masks.copy())
                taken.append((sequence, job.error))
            elif job.began is not None and now - job.began > self._limit_s:
                problem = f"is too costly to follow: a mask took more than {self._limit_s:g} s"
                taken.append((sequence, InvalidGuideError(tensors.GUIDE.name, problem)))
            elif sequence.finish_reason is None:
                continue
            del self._late[sequence]
        return taken

    def wait_late(self) -> bool:
        """Wait up to 10 ms for a late mask; return whether there was one to wait for."""
        if not self._late:
            return False
        with self._done:
            self._done.wait_for(lambda: any(job.is_done for job in self._late.values()), _MOMENT_S)
        return True

    def close(self) -> None:
        """End the threads."""
        self._threads.close()
        self._slow_thread.close()

    def _wait(self, jobs: list[MaskJob], *, can_go_on: bool) -> None:
        """Wait for all masks during the grace, then for one if no sequence in the step would get a token without it."""

        def all_done() -> bool:
            return all(job.is_done for job in jobs)

        if all_done():
            return
        self._threads.hurry()
        with self._done:
            if self._done.wait_for(all_done, self._grace_s) or can_go_on:
                return
            self._done.wait_for(lambda: any(job.is_done for job in jobs), _ALONE_S)

    def _fill(self, job: MaskJob) -> None:
        job.began = time.monotonic()
        try:
            if job.sequence.finish_reason is None:
                job.guide.fill(job.draft_ids, job.masks)
        except BaseException as cause:  # whatever it is, even a library's panic, it ends this sequence alone
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
            self._notify()

    def _notify(self) -> None:
        """Wake the thread that waits for masks; called for several masks at once, because it costs more than one."""
        with self._done:
            self._done.notify_all()


def default_threads() -> int:
    """Return how many threads fill masks on this machine by default."""
    return max(2, min(8, (os.cpu_count() or 1) - 1))


def _nothing() -> None:
    return None


#: A mask that takes longer than this is slow; an ordinary one takes a tenth of it. A mask that only had to wait for a
#: core is counted as slow once, which does no harm.
_SLOW_S = 0.004
#: Seconds of work for which a further thread is worthwhile, and the weight of the newest mask in the average time.
_WORTH_S = 0.001
_NEWEST_SHARE = 0.05
#: How long a step waits for a mask without which no sequence would get a token.
_ALONE_S = 0.1
#: How long commands to the core may wait while only masks are waited for.
_MOMENT_S = 0.01
