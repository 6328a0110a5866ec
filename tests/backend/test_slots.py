"""The slot manager by itself: who gets which slot, what is found, taken over or copied, and what goes first."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.backend.doubles import make_sequence
from trident_backend.engine.protocol import EngineSpec, KVKind
from trident_backend.kv_caches import make_kv_cache
from trident_backend.sampling.choices import TokenLogProbs
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.slots import SlotManager

A, B, C = (list(range(start, start + 12)) for start in (100, 200, 300))


def _slots(num_slots: int = 4, *, reuse: bool = True) -> SlotManager:
    return SlotManager(num_slots, 24, granule=4, reuse=reuse)


def _admit(slots: SlotManager, prompt: list[int], **fields: Any) -> Sequence:
    """A sequence that has its slot and has computed nothing."""
    sequence = make_sequence(0, prompt, 2, **fields)
    num_cached = slots.admit(sequence, sequence.max_len)
    assert num_cached is not None
    sequence.num_computed_tokens = num_cached
    return sequence


def _compute(slots: SlotManager, sequence: Sequence) -> tuple[tuple[int, int, int], ...]:
    """Its tokens are computed; returns what was copied before."""
    assert slots.grow(sequence, sequence.num_tokens)
    copies = slots.take_copies()
    sequence.num_computed_tokens = sequence.num_tokens
    slots.commit(sequence)
    return copies


def _run(slots: SlotManager, prompt: list[int], **fields: Any) -> Sequence:
    """One whose prompt has been computed."""
    sequence = _admit(slots, prompt, **fields)
    _compute(slots, sequence)
    return sequence


def _use(slots: SlotManager, prompt: list[int], **fields: Any) -> int:
    """One that has come and gone; returns its slot."""
    sequence = _run(slots, prompt, **fields)
    [slot] = sequence.block_table
    slots.release(sequence)
    return slot


def _num_found(slots: SlotManager, prompt: list[int], **fields: Any) -> int | None:
    """How many tokens a new sequence would find, without any trace of the question."""
    sequence = make_sequence(0, prompt, 2, **fields)
    num_found = slots.num_cached(sequence)
    assert copy.deepcopy(slots).admit(sequence, sequence.max_len) == num_found
    return num_found


@pytest.mark.parametrize(("kind", "longest"), [(KVKind.SLOTS, 64), (KVKind.BLOCKS, 3 * 64)])
@pytest.mark.parametrize("reuse", [True, False])
def test_an_engine_gets_the_cache_that_it_has(kind: KVKind, longest: int, reuse: bool) -> None:
    spec = EngineSpec(97, 2, 64, 64, block_size=64, num_blocks=3, kv_kind=kind)
    cache = make_kv_cache(spec, reuse=reuse)
    assert (cache.num_blocks, cache.block_size, cache.num_free, cache.num_used, cache.num_reused) == (3, 64, 3, 0, 0)
    assert cache.fits(longest)
    assert not cache.fits(longest + 1)
    sequence = make_sequence(0, [7] * 64, 0)
    assert cache.admit(sequence, 64) == 0
    assert cache.grow(sequence, 64)
    sequence.num_computed_tokens = 64
    cache.release(sequence)
    # Less than a block, and a granule of a slot.
    assert cache.num_cached(make_sequence(1, [7] * 40, 1)) == (32 if reuse and kind is KVKind.SLOTS else 0)


def test_a_slot_is_a_slot() -> None:
    """Whatever is promised, each has one, to its end."""
    slots = _slots(2)
    small, large = _admit(slots, [1]), _admit(slots, [2] * 22)
    assert (small.block_table, large.block_table) == ([0], [1])
    assert (slots.num_free, slots.num_used) == (0, 2)
    another = make_sequence(2, [3], 1)
    assert slots.admit(another, 2) is None
    assert another.block_table == []
    assert slots.grow(small, 24), "beyond what it was promised"
    assert not slots.grow(small, 25)
    slots.check_integrity([small, large])
    slots.release(small)
    assert slots.admit(another, 2) == 0
    assert another.block_table == [0]
    slots.check_integrity([large, another])


def test_the_lowest_blank_slot_goes_first() -> None:
    slots = _slots(5, reuse=False)
    running = [_run(slots, [number]) for number in range(5)]
    for number in (3, 0, 4, 1):
        slots.release(running[number])
    assert [_admit(slots, A).block_table for _ in range(4)] == [[0], [1], [3], [4]]


def test_what_comes_again_is_taken_over_in_place() -> None:
    """A conversation goes on where it was."""
    slots = _slots()
    _use(slots, B)
    assert _use(slots, [*A, 1]) == 1
    sequence = _admit(slots, [*A, 1, 2, 3, 4])
    assert (sequence.block_table, sequence.num_computed_tokens) == ([1], 12)
    assert _compute(slots, sequence) == ()
    assert slots.num_reused == 1
    slots.check_integrity([sequence])


@pytest.mark.parametrize(("num_kept", "in_place"), [(4, True), (8, True), (12, False), (20, False)])
def test_what_is_mostly_something_else_is_left_and_copied_from(num_kept: int, in_place: bool) -> None:
    slots = _slots()
    _use(slots, [*A, *B][:num_kept])
    sequence = _admit(slots, [*A[:4], 7, 7])
    assert sequence.num_computed_tokens == 4
    assert sequence.block_table == ([0] if in_place else [1])
    assert _compute(slots, sequence) == (() if in_place else ((0, 1, 4),))
    slots.check_integrity([sequence])
    assert slots.num_cached(make_sequence(1, [*A, *B], 1)) == (4 if in_place else num_kept)


def test_where_the_slot_to_give_up_begins_alike_it_is_taken_over_whatever_else_is_in_it() -> None:
    """Its rest is lost in any case, and nothing is copied."""
    slots = _slots(3)
    _use(slots, [*A[:4], *B])
    _use(slots, A)
    holder = _run(slots, C)
    sequence = _admit(slots, [*A[:4], 7])
    assert (sequence.block_table, sequence.num_computed_tokens) == ([0], 4)
    assert _compute(slots, sequence) == ()
    assert slots.num_cached(make_sequence(1, [*A[:4], *B], 1)) == 4, "the rest is overwritten"
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 12
    slots.check_integrity([holder, sequence])


def test_of_equals_the_one_with_least_besides_is_taken_over() -> None:
    slots = _slots()
    _use(slots, A)
    _use(slots, A[:4])
    sequence = _admit(slots, [*A[:4], 7])
    assert sequence.block_table == [1]
    slots.check_integrity([sequence])


def test_a_free_slot_is_taken_over_though_a_running_sequence_has_less_besides() -> None:
    slots = _slots()
    _use(slots, A[:8])
    running = _run(slots, A[:4])
    sequence = _admit(slots, [*A[:4], 7])
    assert (running.block_table, sequence.block_table) == ([1], [0])
    assert _compute(slots, sequence) == ()
    slots.check_integrity([running, sequence])


def test_a_running_sequence_is_copied_from_as_far_as_it_is_committed() -> None:
    slots = _slots()
    running = _admit(slots, A)
    assert slots.grow(running, 12)
    assert _num_found(slots, [*A, 1]) == 0
    running.num_computed_tokens = 11
    assert _num_found(slots, [*A, 1]) == 0
    slots.commit(running)
    assert _num_found(slots, [*A, 1]) == 8
    sequence = _admit(slots, [*A, 1])
    assert slots.take_copies() == (), "before it grows, nobody computes for it"
    assert _compute(slots, sequence) == ((0, 1, 8),)
    assert slots.grow(sequence, 14)
    assert slots.take_copies() == (), "once"
    slots.check_integrity([running, sequence])


@pytest.mark.parametrize(("num_tokens", "num_found"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_the_last_token_is_computed_in_any_case(num_tokens: int, num_found: int) -> None:
    slots = _slots()
    _use(slots, [*A, 1])
    assert _num_found(slots, [*A, 1][:num_tokens]) == num_found


def test_of_a_prompt_that_is_scored_only_what_has_been_scored_is_found() -> None:
    slots = _slots()
    _use(slots, A)
    sequence = make_sequence(1, [*A, 1], 2, sampling=SamplingParams(prompt_log_probs=True))
    assert slots.num_cached(sequence) == 0
    sequence.prompt_log_probs.extend([TokenLogProbs(0.0)] * 9)
    assert slots.num_cached(sequence) == 8


def test_blank_slots_go_before_kept_ones_and_those_by_their_last_use() -> None:
    slots = _slots(4)
    for prompt in (A, B, C, [*A, 1]):
        _use(slots, prompt)
    left = []
    for number in range(3):
        _run(slots, [number], reuse_cache=False)
        left.append([slots.num_cached(make_sequence(0, [*prompt, 1], 1)) for prompt in (A, B, C)])
    assert left == [[12, 12, 12], [12, 0, 12], [12, 0, 0]]


def test_to_be_copied_from_is_use() -> None:
    slots = _slots(4)
    _use(slots, A)
    _use(slots, B)
    assert _use(slots, [*A[:4], 7]) == 2
    _run(slots, [0], reuse_cache=False)
    _run(slots, [1], reuse_cache=False)
    assert (_num_found(slots, [*A, 1]), _num_found(slots, [*B, 1])) == (12, 0)


def test_a_slot_that_is_needed_is_copied_to_from_one_that_was_used_later() -> None:
    slots = _slots(2)
    _use(slots, B)
    _use(slots, A)
    sequence = _admit(slots, [*A[:4], 7])
    assert sequence.block_table == [0]
    assert _compute(slots, sequence) == ((1, 0, 4),)
    slots.release(sequence)
    assert (_num_found(slots, [*A, 1]), _num_found(slots, [*B, 1])) == (12, 0)


def test_what_is_to_be_copied_is_given_to_nobody_before() -> None:
    """Its owner goes on, and then goes, before the one that reads it first grows."""
    slots = _slots(3)
    owner = _run(slots, A)
    reader = _admit(slots, [*A[:8], 7])
    slots.release(owner)
    slots.check_integrity([reader])
    assert (slots.num_free, slots.num_used) == (1, 2)
    again = _admit(slots, [*A, 1])
    assert (again.block_table, again.num_computed_tokens) == ([2], 12), "though it had it all to itself"
    assert slots.admit(make_sequence(1, C, 2), 14) is None
    slots.check_integrity([reader, again])
    assert _compute(slots, again) == ((0, 2, 12),)
    assert slots.num_free == 0, "another is still to read it"
    assert _compute(slots, reader) == ((0, 1, 8),)
    assert slots.num_free == 1
    slots.check_integrity([reader, again])
    assert _admit(slots, C).block_table == [0]


def test_one_that_leaves_before_it_has_grown_has_left_nothing_and_lets_its_source_go() -> None:
    slots = _slots(2)
    owner = _run(slots, A)
    reader = _admit(slots, [*A[:8], 7])
    slots.release(owner)
    slots.release(reader)
    assert slots.take_copies() == ()
    assert slots.num_free == 2
    slots.check_integrity([])
    assert _admit(slots, B).block_table == [1], "nothing was ever in it"
    assert _num_found(slots, [*A, 1]) == 12


def test_what_a_failed_step_was_to_copy_is_not_known() -> None:
    slots = _slots(3)
    owner = _run(slots, A)
    reader = _admit(slots, [*A, 7])
    assert slots.grow(reader, 13)
    assert slots.take_copies() == ((0, 1, 12),)
    slots.release(reader)
    slots.release(owner)
    assert [_admit(slots, B).block_table, _admit(slots, C).block_table] == [[1], [2]], "both are blank"
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 12, "of its owner"


def test_what_a_failed_step_did_not_touch_is_known_on() -> None:
    slots = _slots(1)
    _use(slots, A)
    sequence = _admit(slots, [*A, 7])
    assert slots.grow(sequence, 13)
    slots.release(sequence)
    assert _num_found(slots, [*A, 1]) == 12
    slots.check_integrity([])


def test_tokens_that_turned_out_to_be_no_numbers_are_not_known() -> None:
    slots = _slots(2)
    sequence = _run(slots, A[:8])
    sequence.token_ids.extend(A[8:])
    # Where the step has failed, the scheduler sets it back.
    sequence.num_computed_tokens = 8
    slots.release(sequence)
    assert _num_found(slots, [*A, 1]) == 8


def test_whoever_opts_out_neither_reads_nor_leaves() -> None:
    slots = _slots()
    _use(slots, A, reuse_cache=False)
    assert _num_found(slots, [*A, 1]) == 0
    _use(slots, A)
    assert _num_found(slots, [*A, 1]) == 12
    assert _num_found(slots, [*A, 1], reuse_cache=False) == 0


def test_salts_never_share() -> None:
    slots = _slots()
    _use(slots, A, cache_salt="one")
    assert [_num_found(slots, [*A, 1], cache_salt=salt) for salt in ("one", "two", "")] == [12, 0, 0]


def test_without_reuse_nothing_is_found_but_siblings_share() -> None:
    slots = _slots(reuse=False)
    parent = _run(slots, A)
    assert _num_found(slots, [*A, 1]) == 0
    sibling = _admit(slots, A, parent=parent)
    assert sibling.num_computed_tokens == 11
    slots.release(parent)
    assert slots.num_free == 2, "it is blank, and still to be read"
    slots.check_integrity([sibling])
    assert _compute(slots, sibling) == ((0, 1, 11),)
    assert slots.num_free == 3
    assert _admit(slots, B).block_table == [0]


@pytest.mark.parametrize(("num_computed", "num_shared"), [(0, 0), (8, 8), (10, 8), (11, 10), (12, 10)])
def test_a_prompt_is_shared_with_a_sibling_to_the_token_once_it_is_computed(num_computed: int, num_shared: int) -> None:
    slots = _slots()
    parent = _admit(slots, A[:11])
    assert slots.grow(parent, 12)
    parent.num_computed_tokens = min(num_computed, 11)
    slots.commit(parent)
    sibling = _admit(slots, A[:11], parent=parent)
    assert sibling.num_computed_tokens == num_shared
    assert _compute(slots, sibling) == (((0, 1, num_shared),) if num_shared else ())
    slots.check_integrity([parent, sibling])


def test_a_prompt_of_one_token_leaves_nothing_to_copy() -> None:
    slots = _slots()
    parent = _run(slots, [5])
    sibling = _admit(slots, [5], parent=parent)
    assert sibling.num_computed_tokens == 0
    assert _compute(slots, sibling) == ()
    assert slots.num_reused == 0


def test_a_parent_that_is_still_to_be_copied_itself_shares_nothing() -> None:
    """It has lost its slot, found its prompt in another's and has not computed since."""
    slots = _slots(4)
    _run(slots, [*A, *B[:8]])
    parent = make_sequence(1, A, 10)
    parent.token_ids.extend(B[:4])
    parent.num_computed_tokens = slots.admit(parent, 22) or 0
    assert parent.num_computed_tokens == 12
    sibling = _admit(slots, A, parent=parent)
    assert sibling.num_computed_tokens == 8, "what is known by content, from the one who has it"
    assert _compute(slots, sibling) == ((0, sibling.block_table[0], 8),)
    assert _compute(slots, parent) == ((0, parent.block_table[0], 12),)
    assert _compute(slots, later := _admit(slots, A, parent=parent)) == ((1, later.block_table[0], 11),)


def test_a_sequence_that_lost_its_slot_finds_its_output_again() -> None:
    slots = _slots(2)
    sequence = _run(slots, A[:6])
    sequence.token_ids.extend(B[:5])
    sequence.num_computed_tokens = 10
    slots.release(sequence)
    sequence.num_computed_tokens = 0
    assert slots.admit(sequence, 16) == 8
    assert sequence.block_table == [0]


def test_copies_come_in_the_order_in_which_sequences_grew() -> None:
    """A slot is read, let go, given away and filled from another, all before the step computes."""
    slots = _slots(3)
    first, other = _run(slots, A), _run(slots, B)
    reader = _admit(slots, [*A[:8], 7])
    slots.release(first)
    assert slots.grow(reader, 9)
    assert slots.num_free == 1
    taker = _admit(slots, [*B[:8], 7])
    assert taker.block_table == [0]
    assert slots.grow(taker, 9)
    assert slots.take_copies() == ((0, 2, 8), (1, 0, 8))
    assert slots.take_copies() == ()
    slots.check_integrity([other, reader, taker])
