"""Fills the masks of a step's rows while the engine computes their logits.

Owns one thread. Never touches a sequence but to read its guide, and that only between `begin` and the wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from trident_backend.guide import MASK_WORD, Guide, Masks, RowMasks
from trident_backend.steps import Row


class _Job(NamedTuple):
    """The rows of one sequence, one after another in the masks: the next token, then one after each guess."""

    guide: Guide
    draft_ids: tuple[int, ...]


class MaskWorker:
    """Masks, off the engine's thread.

    Args:
        vocab_size: width of a row of logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_words = -(-vocab_size // MASK_WORD)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trident-guides")

    def begin(self, rows: Iterable[Row]) -> Callable[[], RowMasks | None]:
        """Start on the masks of a step.

        Args:
            rows: the step's; those that choose for a sequence with a guide get a mask.

        Returns:
            what waits for the masks and returns them, None if there are none. It must be called before a guide
            advances. A guide that fails allows nothing, which is its own sequence's error alone.
        """
        places: list[int] = []
        jobs: list[_Job] = []
        for index, row in enumerate(rows):
            guide = row.sequence.guide
            if guide is None or row.is_scored:
                continue
            places.append(index)
            if jobs and jobs[-1].guide is guide:
                jobs[-1] = _Job(guide, row.draft_ids)
            else:
                jobs.append(_Job(guide, row.draft_ids))
        if not jobs:
            return _nothing
        words = np.empty((len(places), self._num_words), np.uint32)
        filled = self._pool.submit(_fill, jobs, words)

        def wait() -> RowMasks:
            filled.result()
            return RowMasks(np.array(places, np.intp), words)

        return wait

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown()


def _nothing() -> None:
    return None


def _fill(jobs: list[_Job], words: Masks) -> None:
    place = 0
    for guide, draft_ids in jobs:
        masks = words[place : place + 1 + len(draft_ids)]
        try:
            guide.fill(draft_ids, masks)
        except Exception:  # whatever it is, it is its own sequence's alone
            masks[:] = 0
        place += len(masks)
