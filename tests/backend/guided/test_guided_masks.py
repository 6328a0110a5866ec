"""The threads that fill a step's masks: whose rows, in which order, and what a failure or a slow guide does."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from trident_backend.guided.mask_worker import MaskWorker
from trident_backend.sequences.guide import Guide, Masks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import Row
from trident_ensemble.contract.errors import InternalError, InvalidGuideError, TridentError

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


class Panic(BaseException):
    """As a library written in Rust raises, which is no Exception."""


class FailingGuide(GuideDouble):
    """Fails after it has written something."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(1)
        self.raised = raised

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        masks[:] = 7
        raise self.raised


@pytest.fixture
def worker() -> Iterator[MaskWorker]:
    worker = MaskWorker(VOCAB_SIZE, num_threads=2)
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


def test_guided_masks_rows_that_choose_for_a_guided_sequence_get_a_mask_and_no_others(worker: MaskWorker) -> None:
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


def test_guided_masks_without_guides_there_is_nothing_to_wait_for(worker: MaskWorker) -> None:
    assert worker.begin(rows_of(sequence(None), (1, 2)))() is None
    assert worker.begin([Row(sequence(GuideDouble(1)), 2)])() is None
    assert worker.begin(())() is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trident-guides")]


def test_guided_masks_masks_are_filled_on_the_workers_thread(worker: MaskWorker) -> None:
    guide = GuideDouble(1)
    worker.begin(rows_of(sequence(guide)))()
    assert guide.threads
    assert all(name.startswith("trident-guides") for name in guide.threads)
    worker.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trident-guides")]


@pytest.mark.parametrize("raised", [RuntimeError("out of order"), Panic("out of order")])
def test_guided_masks_a_guide_that_fails_ends_its_own_sequence_and_harms_no_other(
    worker: MaskWorker, raised: BaseException
) -> None:
    failing, well = sequence(FailingGuide(raised)), sequence(GuideDouble(2))
    masks = worker.begin([*rows_of(failing, (3,)), *rows_of(well)])()
    assert masks is not None
    assert (masks.rows.tolist(), [allowed(mask) for mask in masks.words]) == ([2], [[2]])
    assert worker.late == {failing}
    ((ended, error),) = worker.take_ready()
    assert ended is failing
    assert isinstance(error, InternalError)
    assert error.__cause__ is raised
    assert not worker.late


def test_guided_masks_masks_are_filled_while_the_caller_does_something_else(worker: MaskWorker) -> None:
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


class GatedGuide(GuideDouble):
    """Fills its mask when it may."""

    def __init__(self, token_id: int) -> None:
        super().__init__(token_id)
        self.gate = threading.Event()

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        assert self.gate.wait(60)
        super().fill(draft_ids, masks)


def ready(worker: MaskWorker) -> list[Sequence]:
    """Wait for the next late masks and take their sequences."""
    for _ in range(1000):
        if taken := worker.take_ready():
            assert all(error is None for _, error in taken)
            return [sequence for sequence, _ in taken]
        assert worker.wait_late()
    raise AssertionError("no mask came")


def test_guided_masks_a_mask_that_is_late_holds_up_nobody_and_is_used_when_it_is_there(worker: MaskWorker) -> None:
    slow = GatedGuide(5)
    late, others = sequence(slow), [sequence(GuideDouble(number)) for number in range(1, 4)]
    rows = [*rows_of(late, (7, 8)), *(row for other in others for row in rows_of(other))]
    masks = worker.begin(rows)()
    assert masks is not None
    assert masks.rows.tolist() == [3, 4, 5]
    assert [allowed(mask) for mask in masks.words] == [[1], [2], [3]]
    assert worker.late == {late}
    assert worker.take_ready() == []
    masks = worker.begin(rows[3:])()
    assert masks is not None
    assert len(masks.rows) == 3, "the others go on"
    slow.gate.set()
    assert ready(worker) == [late]
    assert not worker.late
    masks = worker.begin(rows[:3])()
    assert masks is not None
    assert [allowed(mask) for mask in masks.words] == [[5], [7], [8]]
    assert len(slow.threads) == 1, "it is not filled twice"


def test_guided_masks_a_late_mask_serves_other_guesses_with_none(worker: MaskWorker) -> None:
    slow = GatedGuide(5)
    late = sequence(slow)
    worker.begin([*rows_of(late, (7, 8)), *rows_of(sequence(None))])()
    slow.gate.set()
    ready(worker)
    masks = worker.begin(rows_of(late, (9,)))()
    assert masks is not None
    assert [allowed(mask) for mask in masks.words] == [[5], []]


def test_guided_masks_a_late_mask_of_another_place_is_forgotten(worker: MaskWorker) -> None:
    slow = GatedGuide(5)
    late = sequence(slow)
    worker.begin([*rows_of(late), *rows_of(sequence(None))])()
    slow.gate.set()
    ready(worker)
    late.token_ids.append(1)
    masks = worker.begin(rows_of(late))()
    assert masks is not None
    assert len(slow.threads) == 2


def test_guided_masks_a_sequence_that_ends_while_its_mask_is_late_is_forgotten(worker: MaskWorker) -> None:
    slow = GatedGuide(5)
    late = sequence(slow)
    worker.begin([*rows_of(late), *rows_of(sequence(None))])()
    assert worker.late == {late}
    late.finish_reason = FinishReason.CANCELLED
    assert worker.take_ready() == []
    assert not worker.late
    assert not worker.wait_late()
    slow.gate.set()


@pytest.mark.parametrize("ends_before", [True, False])
def test_guided_masks_a_sequence_that_ends_before_its_late_mask_is_used_is_not_kept(
    worker: MaskWorker, ends_before: bool
) -> None:
    """Nor is its guide, and so the memory of its grammar."""
    slow = GatedGuide(5)
    late = sequence(slow)
    kept = weakref.ref(late), weakref.ref(slow)
    worker.begin([*rows_of(late), *rows_of(sequence(None))])()
    if ends_before:
        late.finish_reason = FinishReason.CANCELLED
    slow.gate.set()
    while worker.late:
        worker.wait_late()
        worker.take_ready()
    worker.close()
    del late, slow
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_guided_masks_a_mask_without_end_ends_its_sequence_with_its_error() -> None:
    worker = MaskWorker(VOCAB_SIZE, limit_s=0.05)
    slow = GatedGuide(5)
    late = sequence(slow)
    worker.begin([*rows_of(late), *rows_of(sequence(GuideDouble(1)))])()
    taken: list[tuple[Sequence, TridentError | None]] = []
    while not taken:
        assert worker.wait_late()
        taken = worker.take_ready()
    ((ended, error),) = taken
    assert ended is late
    assert isinstance(error, InvalidGuideError)
    assert error.field == "guided_decoding_guide"
    slow.gate.set()
    worker.close()


def test_guided_masks_a_guide_that_is_known_to_be_slow_costs_others_no_grace() -> None:
    worker = MaskWorker(VOCAB_SIZE, num_threads=1, grace_s=20.0, limit_s=60.0)
    guide = GatedGuide(5)
    slow, quick = sequence(guide), sequence(GuideDouble(1))
    threading.Timer(0.02, guide.gate.set).start()
    assert worker.begin(rows_of(slow))() is not None, "it is not known yet"
    guide.gate.clear()
    began = time.monotonic()
    masks = worker.begin([*rows_of(slow), *rows_of(quick)])()
    assert masks is not None
    assert masks.rows.tolist() == [1]
    assert time.monotonic() - began < 10
    assert worker.late == {slow}
    guide.gate.set()
    worker.close()


def test_guided_masks_slow_guides_wait_for_each_other_and_hold_up_no_others() -> None:
    """All threads could be taken by slow ones, if they did not have one of their own."""

    class BusyGuide(GuideDouble):
        def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            super().fill(draft_ids, masks)

    worker = MaskWorker(VOCAB_SIZE, num_threads=2)
    slow, quick = [sequence(BusyGuide(number)) for number in range(6)], sequence(GuideDouble(9))
    worker.begin([row for each in slow for row in rows_of(each)])()
    left = set(worker.late)
    while left:
        left -= set(ready(worker))
    guides = [each.guide for each in slow]
    for each in slow:
        each.token_ids.append(1)
    masks = worker.begin([*(row for each in slow for row in rows_of(each)), *rows_of(quick)])()
    assert masks is not None
    assert masks.rows[-1] == 6, "the quick one has its mask although six slow ones came before"
    assert worker.late
    left = set(worker.late)
    while left:
        left -= set(ready(worker))
    names = {guide.threads[-1].rpartition("_")[0] for guide in guides if isinstance(guide, GuideDouble)}
    assert names == {"trident-guides-slow"}
    worker.close()
