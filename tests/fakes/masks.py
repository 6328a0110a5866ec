"""A worker for masks that is late when a test says so, and never else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from trident_backend.guided.mask_worker import MaskWorker
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_ensemble.contract.errors import TridentError


class ChosenMasks(MaskWorker):
    """Masks that come at once, except for those of the sequences in `slow`, which come when they no longer are."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, grace_s=60)
        self.slow: set[Sequence] = set()
        self.held: set[Sequence] = set()

    @property
    def late(self) -> frozenset[Sequence]:
        return frozenset(self.held)

    def begin(self, rows: Iterable[Row]) -> Callable[[], RowMasks | None]:
        rows = tuple(rows)
        self._slow.clear()  # on a busy machine any may seem so
        wait = super().begin(rows)

        def chosen() -> RowMasks | None:
            masks = wait()
            if masks is None:
                return None
            self.held |= {rows[place].sequence for place in masks.rows.tolist()} & self.slow
            in_time = np.array([rows[place].sequence not in self.held for place in masks.rows.tolist()])
            return RowMasks(masks.rows[in_time], masks.words[in_time])

        return chosen

    def take_ready(self) -> list[tuple[Sequence, TridentError | None]]:
        assert not super().take_ready()
        ready = [sequence for sequence in self.held if sequence not in self.slow]
        self.held &= self.slow
        return [(sequence, None) for sequence in ready]

    def wait_late(self) -> bool:
        return bool(self.held)
