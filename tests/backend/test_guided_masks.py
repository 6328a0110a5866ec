"""The thread that fills a step's masks: whose rows, in which order, and what a failure does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from trident_backend.guide import Guide, Masks
from trident_backend.guided.worker import MaskWorker
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.steps import Row

VOCAB_SIZE = 70


class GuideDouble:
    """Allows one token, and after each guess the guess itself."""

    is_finished = False
    failure = None

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id
        self.threads: list[str] = []

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        self.threads.append(threading.current_thread().name)
        masks[:] = 0
        for mask, token_id in zip(masks, (self._token_id, *draft_ids), strict=True):
            mask[token_id // 32] = np.uint32(1 << token_id % 32)

    def advance(self, token_id: int) -> None:
        raise AssertionError("nothing advances while masks are filled")


class FailingGuide(GuideDouble):
    """Fails after it has written something."""

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        masks[:] = 7
        raise RuntimeError("out of order")


@pytest.fixture
def worker() -> Iterator[MaskWorker]:
    worker = MaskWorker(VOCAB_SIZE)
    yield worker
    worker.close()


def sequence(guide: Guide | None, num_tokens: int = 4) -> Sequence:
    return Sequence(1, list(range(num_tokens)), num_tokens, 9, SamplingParams(), frozenset(), guide=guide)


def rows_of(sequence: Sequence, draft_ids: tuple[int, ...] = ()) -> list[Row]:
    place = sequence.num_tokens
    return [Row(sequence, place + index, draft_ids[:index]) for index in range(1 + len(draft_ids))]


def allowed(mask: Masks) -> list[int]:
    places: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return places


def test_rows_that_choose_for_a_guided_sequence_get_a_mask_and_no_others(worker: MaskWorker) -> None:
    first, second, plain = (sequence(guide) for guide in (GuideDouble(5), GuideDouble(69), None))
    rows = [
        Row(plain, 2), *rows_of(plain, (1, 2)), Row(first, 2), Row(first, 3), *rows_of(first, (33, 34)),
        *rows_of(second), *rows_of(plain),
    ]  # fmt: skip
    masks = worker.begin(rows)()
    assert masks is not None
    assert masks.rows.tolist() == [6, 7, 8, 9]
    assert masks.words.shape == (4, 3)
    assert masks.words.dtype == np.uint32
    assert [allowed(mask) for mask in masks.words] == [[5], [33], [34], [69]]


def test_without_guides_there_is_nothing_to_wait_for(worker: MaskWorker) -> None:
    assert worker.begin(rows_of(sequence(None), (1, 2)))() is None
    assert worker.begin([Row(sequence(GuideDouble(1)), 2)])() is None
    assert worker.begin(())() is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trident-guides")]


def test_masks_are_filled_on_the_workers_thread(worker: MaskWorker) -> None:
    guide = GuideDouble(1)
    worker.begin(rows_of(sequence(guide)))()
    assert guide.threads
    assert all(name.startswith("trident-guides") for name in guide.threads)
    worker.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trident-guides")]


def test_a_guide_that_fails_allows_nothing_and_harms_no_other(worker: MaskWorker) -> None:
    failing, well = sequence(FailingGuide(1)), sequence(GuideDouble(2))
    masks = worker.begin([*rows_of(failing, (3,)), *rows_of(well)])()
    assert masks is not None
    assert [allowed(mask) for mask in masks.words] == [[], [], [2]]


def test_masks_are_filled_while_the_caller_does_something_else(worker: MaskWorker) -> None:
    may_fill, has_filled = threading.Event(), threading.Event()

    class SlowGuide(GuideDouble):
        def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
            may_fill.wait(60)
            super().fill(draft_ids, masks)
            has_filled.set()

    wait = worker.begin(rows_of(sequence(SlowGuide(1))))
    assert not has_filled.is_set()
    may_fill.set()
    assert has_filled.wait(60)
    assert wait() is not None
