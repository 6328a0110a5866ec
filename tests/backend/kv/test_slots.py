"""The slot manager by itself: who gets which slot, what is found, where it is copied from, and what makes way."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.fakes.core import make_sequence
from trident_backend.engine.protocol import EngineSpec
from trident_backend.kv.cache import make_kv_cache
from trident_backend.kv.slots import SlotManager
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract.manifest import KVKind

A, B, C = (list(range(start, start + 12)) for start in (100, 200, 300))


def _slots(num_slots: int = 4, *, reuse: bool = True) -> SlotManager:
    return SlotManager(num_slots, 24, hash_block_size=4, reuse=reuse)


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
def test_slots_an_engine_gets_the_cache_that_it_has(kind: KVKind, longest: int, reuse: bool) -> None:
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
    # Less than a block, and than a hash block of a slot.
    assert cache.num_cached(make_sequence(1, [7] * 40, 1)) == (32 if reuse and kind is KVKind.SLOTS else 0)


def test_slots_a_slot_is_a_slot() -> None:
    """Whatever is promised, each has one, to its end."""
    slots = _slots(2)
    small, large = _admit(slots, [1]), _admit(slots, [2] * 22)
    assert (small.block_table.tolist(), large.block_table.tolist()) == ([0], [1])
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


def test_slots_the_lowest_free_slot_goes_first_whatever_is_in_it() -> None:
    slots = _slots(5)
    running = [_run(slots, [number] * 5, reuse_cache=number % 2 == 0) for number in range(5)]
    for number in (3, 0, 4, 1):
        slots.release(running[number])
    assert [_admit(slots, A).block_table for _ in range(4)] == [[0], [1], [3], [4]]


def test_slots_a_lone_stream_stays_in_the_lowest_slot_and_what_it_finds_there_makes_way() -> None:
    slots = _slots()
    assert [_use(slots, prompt) for prompt in (A, B, C)] == [0, 0, 0]
    assert [_num_found(slots, [*prompt, 1]) for prompt in (A, B, C)] == [12, 12, 12]


def test_slots_what_comes_again_goes_on_in_the_lowest_slot_and_leaves_the_one_it_had() -> None:
    slots = _slots()
    _use(slots, A)
    _use(slots, B)
    sequence = _admit(slots, [*A, 1, 2, 3, 4])
    assert (sequence.block_table.tolist(), sequence.num_computed_tokens) == ([0], 12)
    assert _num_found(slots, [*A, 1]) == 12, "others find it meanwhile"
    assert _compute(slots, sequence) == ((0, 2, 12), (3, 0, 12))
    assert _num_found(slots, [*A, 1, 2, 3, 4, 5]) == 16
    slots.check_integrity([sequence])
    slots.release(sequence)
    assert [_use(slots, prompt) for prompt in (C, [7] * 12)] == [0, 0], "there are two blank ones"
    assert [_num_found(slots, [*prompt, 1]) for prompt in (A, B, C)] == [12, 12, 12]


def test_slots_what_goes_on_in_its_own_slot_is_not_copied() -> None:
    slots = _slots()
    _use(slots, A)
    sequence = _admit(slots, [*A, 1])
    assert (sequence.block_table.tolist(), sequence.num_computed_tokens) == ([0], 12)
    assert _compute(slots, sequence) == ()
    assert slots.num_reused == 1
    slots.check_integrity([sequence])


@pytest.mark.parametrize(("num_kept", "moves"), [(4, False), (8, False), (12, True), (20, True)])
def test_slots_the_rest_of_what_begins_alike_moves_if_it_is_most(num_kept: int, moves: bool) -> None:
    slots = _slots()
    _use(slots, [*A, *B][:num_kept])
    sequence = _admit(slots, [*A[:4], 7, 7])
    assert (sequence.block_table.tolist(), sequence.num_computed_tokens) == ([0], 4)
    assert _compute(slots, sequence) == (((0, 3, num_kept),) if moves else ()), "the beginning stays in any case"
    slots.check_integrity([sequence])
    assert slots.num_cached(make_sequence(1, [*A, *B], 1)) == (num_kept if moves else 4)


@pytest.mark.parametrize(("num_kept", "is_left"), [(4, False), (8, False), (12, True), (20, True)])
def test_slots_a_slot_that_was_copied_from_is_left_if_most_of_it_is_something_else(
    num_kept: int, is_left: bool
) -> None:
    slots = _slots()
    _use(slots, [*A, *B][:num_kept])
    _use(slots, C)
    sequence = _admit(slots, [*A[:4], 7, 7])
    assert _compute(slots, sequence) == ((0, 2, 12), (3, 0, 4))
    slots.check_integrity([sequence])
    assert slots.num_cached(make_sequence(1, [*A, *B], 1)) == (num_kept if is_left else 4)


def test_slots_a_slot_that_holds_something_else_by_now_is_not_left() -> None:
    slots = _slots(3)
    _use(slots, A)
    _use(slots, B)
    reader = _admit(slots, [*A, 1])
    assert slots.grow(reader, 13)
    others = [_admit(slots, [number] * 8) for number in (7, 8)]
    for other in others:
        _compute(slots, other)
        slots.release(other)
    reader.num_computed_tokens = 13
    slots.commit(reader)
    found = [slots.num_cached(make_sequence(1, [number] * 9, 1)) for number in (7, 8)]
    assert found == [8, 8]
    slots.check_integrity([reader])


def test_slots_who_was_running_is_left_what_it_has_when_it_goes_before_its_reader_has_computed() -> None:
    slots = _slots()
    owner = _run(slots, A)
    reader = _admit(slots, [*A[:8], 7])
    slots.release(owner)
    assert _compute(slots, reader) == ((0, 1, 8),)
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 12


def test_slots_what_has_nowhere_to_go_is_lost_but_its_beginning_is_used() -> None:
    slots = _slots(2)
    _use(slots, [*A[:4], *B])
    holder = _run(slots, C)
    assert holder.block_table == [0]
    sequence = _admit(slots, [*A[:4], 7])
    assert (sequence.block_table.tolist(), sequence.num_computed_tokens) == ([1], 4)
    assert _compute(slots, sequence) == ()
    assert slots.num_cached(make_sequence(1, [*A[:4], *B], 1)) == 4, "the rest is overwritten"
    slots.check_integrity([holder, sequence])


def test_slots_of_equals_the_one_with_least_besides_is_copied_from() -> None:
    slots = _slots(5)
    first, second, third = _run(slots, C), _run(slots, A), _run(slots, A[:4])
    slots.release(second)
    slots.release(third)
    slots.release(first)
    sequence = _admit(slots, [*A[:4], 7])
    assert _compute(slots, sequence) == ((0, 4, 12), (2, 0, 4))
    slots.check_integrity([sequence])


def test_slots_a_free_slot_is_copied_from_though_a_running_sequence_has_less_besides() -> None:
    """So that it can be left."""
    slots = _slots()
    running, other = _run(slots, A[:4]), _run(slots, B)
    last = _run(slots, A[:8])
    slots.release(last)
    slots.release(other)
    sequence = _admit(slots, [*A[:4], 7])
    assert (running.block_table.tolist(), sequence.block_table.tolist()) == ([0], [1])
    assert _compute(slots, sequence) == ((1, 3, 12), (2, 1, 4))
    slots.check_integrity([running, sequence])


def test_slots_what_another_slot_holds_too_makes_no_way() -> None:
    slots = _slots()
    twins = [_run(slots, A), _run(slots, A)]
    for twin in twins:
        slots.release(twin)
    assert _compute(slots, _admit(slots, B)) == ()
    assert _num_found(slots, [*A, 1]) == 12


def test_slots_what_is_about_to_be_kept_elsewhere_makes_no_way() -> None:
    """Two come back in one step, and the second gets the slot that the first is copied from."""
    slots = _slots()
    kept = [_run(slots, prompt) for prompt in (B, A)]
    for sequence in kept:
        slots.release(sequence)
    first = _admit(slots, [*A, 1])
    assert slots.grow(first, 13)
    second = _admit(slots, C)
    assert second.block_table == [1]
    assert slots.grow(second, 12)
    assert slots.take_copies() == ((0, 3, 12), (1, 0, 12))


def test_slots_what_moves_is_known_once_the_step_has_computed() -> None:
    slots = _slots()
    _use(slots, A)
    sequence = _admit(slots, B)
    assert (slots.num_free, slots.num_cached(make_sequence(1, [*A, 1], 1))) == (3, 0)
    assert slots.take_copies() == (), "before it grows, nobody writes there"
    assert slots.grow(sequence, 12)
    assert slots.take_copies() == ((0, 3, 12),)
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 0
    sequence.num_computed_tokens = 4
    slots.commit(sequence)
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 12
    slots.check_integrity([sequence])


@pytest.mark.parametrize("grows", [True, False])
def test_slots_what_moves_for_a_sequence_that_never_computes_is_lost(grows: bool) -> None:
    slots = _slots()
    _use(slots, A)
    sequence = _admit(slots, B)
    if grows:
        assert slots.grow(sequence, 12)
    slots.release(sequence)
    assert slots.take_copies() == (((0, 3, 12),) if grows else ())
    slots.check_integrity([])
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 0
    assert [_admit(slots, [number]).block_table for number in range(4)] == [[0], [1], [2], [3]]
    assert slots.take_copies() == ()


def test_slots_a_spare_slot_is_given_to_whoever_comes_and_what_moves_there_is_sent_on_or_lost() -> None:
    slots = _slots(3)
    _use(slots, A)
    movers = [_admit(slots, B), _admit(slots, C)]
    assert slots.grow(movers[0], 12)
    assert [mover.block_table for mover in movers] == [[0], [1]]
    third = _admit(slots, [7])
    assert (third.block_table.tolist(), slots.num_free) == ([2], 0)
    assert slots.take_copies() == ((0, 2, 12),)
    for sequence in (*movers, third):
        _compute(slots, sequence)
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 0
    slots.check_integrity([*movers, third])


@pytest.mark.parametrize("grows_first", [True, False])
def test_slots_what_is_sent_on_is_copied_from_where_it_is_then(grows_first: bool) -> None:
    slots = _slots(4)
    everyone = [_run(slots, prompt) for prompt in (C, A, B, [7] * 8)]
    for number in (1, 2, 0):
        slots.release(everyone[number])
    first = _admit(slots, [1] * 5)
    if grows_first:
        assert slots.grow(first, 5)
    second = _admit(slots, [2] * 5)
    assert (first.block_table.tolist(), second.block_table.tolist()) == ([0], [1]), (
        "which is where the first's was to go"
    )
    if not grows_first:
        assert slots.grow(first, 5)
    assert slots.grow(second, 5)
    assert slots.take_copies() == (((0, 1, 12), (1, 2, 12)) if grows_first else ((0, 2, 12),))
    for sequence in (first, second):
        sequence.num_computed_tokens = 5
        slots.commit(sequence)
    found = [slots.num_cached(make_sequence(1, [*prompt, 1], 1)) for prompt in (A, B, C)]
    assert found == [0, 0, 12], "it was of use last"
    slots.check_integrity([everyone[3], first, second])


def test_slots_a_running_sequence_is_copied_from_as_far_as_it_is_committed() -> None:
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
def test_slots_the_last_token_is_computed_in_any_case(num_tokens: int, num_found: int) -> None:
    slots = _slots()
    _use(slots, [*A, 1])
    assert _num_found(slots, [*A, 1][:num_tokens]) == num_found


def test_slots_of_a_prompt_that_is_scored_only_what_has_been_scored_is_found() -> None:
    slots = _slots()
    _use(slots, A)
    sequence = make_sequence(1, [*A, 1], 2, sampling=SamplingParams(prompt_log_probs=True))
    assert slots.num_cached(sequence) == 0
    sequence.prompt_log_probs.extend([TokenLogProbs(0.0)] * 9)
    assert slots.num_cached(sequence) == 8


def test_slots_blank_slots_are_filled_before_kept_ones_and_those_by_their_last_use() -> None:
    slots = _slots(4)
    for prompt in (A, B, C, [*A, 1]):
        _use(slots, prompt)
    left = []
    for number in range(5):
        _use(slots, [number], reuse_cache=False)
        _run(slots, [number], reuse_cache=False)
        left.append([slots.num_cached(make_sequence(0, [*prompt, 1], 1)) for prompt in (A, B, C)])
        if not slots.num_free:
            break
    assert left == [[12, 12, 12], [12, 0, 12], [12, 0, 0], [0, 0, 0]]


def test_slots_to_be_copied_from_is_use() -> None:
    slots = _slots(3)
    _use(slots, [*A, *A[:4]])
    _use(slots, B)
    assert _use(slots, [*A[:4], 7, 7, 7, 7]) == 0
    _run(slots, [0], reuse_cache=False)
    assert (_num_found(slots, [*A, 1]), _num_found(slots, [*B, 1])) == (12, 0)


def test_slots_to_move_is_no_use() -> None:
    """What was used first goes first, wherever it has been since."""
    slots = _slots(4)
    first, second = _run(slots, A), _run(slots, B)
    slots.release(first)
    blocker = _run(slots, [1], reuse_cache=False)
    assert blocker.block_table == [0]
    slots.release(second)
    others = [_run(slots, [number], reuse_cache=False) for number in (2, 3)]
    assert [other.block_table for other in others] == [[1], [2]]
    assert (_num_found(slots, [*A, 1]), _num_found(slots, [*B, 1])) == (0, 12)
    slots.check_integrity([blocker, *others])


def test_slots_what_is_to_be_copied_is_given_to_nobody_before() -> None:
    """Its owner goes on, and then goes, before the one that reads it first grows."""
    slots = _slots(3)
    owner = _run(slots, A)
    reader = _admit(slots, [*A[:8], 7])
    slots.release(owner)
    slots.check_integrity([reader])
    assert (slots.num_free, slots.num_used) == (1, 2)
    again = _admit(slots, [*A, 1])
    assert (again.block_table.tolist(), again.num_computed_tokens) == ([2], 12), "though it had it all to itself"
    assert slots.admit(make_sequence(1, C, 2), 14) is None
    slots.check_integrity([reader, again])
    assert _compute(slots, again) == ((0, 2, 12),)
    assert slots.num_free == 0, "another is still to read it"
    assert _compute(slots, reader) == ((0, 1, 8),)
    assert slots.num_free == 1
    slots.check_integrity([reader, again])
    assert _admit(slots, C).block_table == [0]


def test_slots_one_that_leaves_before_it_has_grown_has_left_nothing_and_lets_its_source_go() -> None:
    slots = _slots(2)
    owner = _run(slots, A)
    reader = _admit(slots, [*A[:8], 7])
    slots.release(owner)
    slots.release(reader)
    assert slots.take_copies() == ()
    assert slots.num_free == 2
    slots.check_integrity([])
    assert _num_found(slots, [*A, 1]) == 12
    assert _compute(slots, _admit(slots, B)) == ((0, 1, 12),), "nothing was ever there"
    assert _num_found(slots, [*A, 1]) == 12


def test_slots_what_a_failed_step_was_to_copy_is_not_known() -> None:
    slots = _slots(3)
    owner = _run(slots, A)
    reader = _admit(slots, [*A, 7])
    assert slots.grow(reader, 13)
    assert slots.take_copies() == ((0, 1, 12),)
    slots.release(reader)
    slots.release(owner)
    assert slots.num_cached(make_sequence(1, [*A, 1], 1)) == 12, "of its owner"
    assert _compute(slots, _admit(slots, B)) == ((0, 2, 12),), "the others are blank"


def test_slots_what_a_failed_step_did_not_touch_is_known_on() -> None:
    slots = _slots(1)
    _use(slots, A)
    sequence = _admit(slots, [*A, 7])
    assert slots.grow(sequence, 13)
    slots.release(sequence)
    assert _num_found(slots, [*A, 1]) == 12
    slots.check_integrity([])


def test_slots_tokens_that_turned_out_to_be_no_numbers_are_not_known() -> None:
    slots = _slots(2)
    sequence = _run(slots, A[:8])
    sequence.token_ids.extend(A[8:])
    # Where the step has failed, the scheduler sets it back.
    sequence.num_computed_tokens = 8
    slots.release(sequence)
    assert _num_found(slots, [*A, 1]) == 8


def test_slots_whoever_opts_out_neither_reads_nor_leaves() -> None:
    slots = _slots()
    _use(slots, A, reuse_cache=False)
    assert _num_found(slots, [*A, 1]) == 0
    _use(slots, A)
    assert _num_found(slots, [*A, 1]) == 12
    assert _num_found(slots, [*A, 1], reuse_cache=False) == 0


def test_slots_salts_never_share() -> None:
    slots = _slots()
    _use(slots, A, cache_salt="one")
    assert [_num_found(slots, [*A, 1], cache_salt=salt) for salt in ("one", "two", "")] == [12, 0, 0]


def test_slots_without_reuse_nothing_is_found_but_siblings_share() -> None:
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
def test_slots_a_prompt_is_shared_with_a_sibling_to_the_token_once_it_is_computed(
    num_computed: int, num_shared: int
) -> None:
    slots = _slots()
    parent = _admit(slots, A[:11])
    assert slots.grow(parent, 12)
    parent.num_computed_tokens = min(num_computed, 11)
    slots.commit(parent)
    sibling = _admit(slots, A[:11], parent=parent)
    assert sibling.num_computed_tokens == num_shared
    assert _compute(slots, sibling) == (((0, 1, num_shared),) if num_shared else ())
    slots.check_integrity([parent, sibling])


def test_slots_a_prompt_of_one_token_leaves_nothing_to_copy() -> None:
    slots = _slots()
    parent = _run(slots, [5])
    sibling = _admit(slots, [5], parent=parent)
    assert sibling.num_computed_tokens == 0
    assert _compute(slots, sibling) == ()
    assert slots.num_reused == 0


def test_slots_a_parent_that_is_still_to_be_copied_itself_shares_nothing() -> None:
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


def test_slots_a_sequence_that_lost_its_slot_finds_its_output_again() -> None:
    slots = _slots(2)
    sequence = _run(slots, A[:6])
    sequence.token_ids.extend(B[:5])
    sequence.num_computed_tokens = 10
    slots.release(sequence)
    sequence.num_computed_tokens = 0
    assert slots.admit(sequence, 16) == 8
    assert sequence.block_table == [0]


def test_slots_copies_come_in_the_order_in_which_sequences_grew() -> None:
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
