"""The block manager by itself: promises, sharing, what is kept and what goes first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.core import make_sequence
from trident_backend.kv.blocks import BlockManager
from trident_backend.kv.prefix_cache import block_digests
from trident_backend.sequences.sequence import Sequence

ACTIONS = ["admit", "sibling", "sibling", "grow", "grow", "beyond", "release"]
A, B = list(range(100, 112)), list(range(200, 212))


def _compute(blocks: BlockManager, prompt: list[int], max_tokens: int = 1, **fields: Any) -> Sequence:
    """A sequence whose whole prompt has been computed."""
    sequence = make_sequence(0, prompt, max_tokens, **fields)
    assert blocks.admit(sequence, sequence.max_len) is not None
    assert blocks.grow(sequence, len(prompt))
    sequence.num_computed_tokens = len(prompt)
    blocks.commit(sequence)
    return sequence


def _use(blocks: BlockManager, prompt: list[int], **fields: Any) -> None:
    """One that has come and gone."""
    blocks.release(_compute(blocks, prompt, **fields))


def _num_found(blocks: BlockManager, prompt: list[int], **fields: Any) -> int | None:
    """How many tokens a new sequence would find, without any trace of the question."""
    sequence = make_sequence(0, prompt, 1, **fields)
    return copy.deepcopy(blocks).admit(sequence, sequence.max_len)


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 96])
def test_blocks_fits(num_tokens: int) -> None:
    assert BlockManager(24, 4).fits(num_tokens)
    assert not BlockManager(24, 4).fits(97)


def test_blocks_a_promise_is_kept_when_others_would_take_the_blocks() -> None:
    blocks = BlockManager(num_blocks=10, block_size=4)
    first, second = make_sequence(0, [1] * 4, 20), make_sequence(1, [1] * 4, 20)
    assert blocks.admit(first, 24) == 0
    assert blocks.admit(second, 24) is None, "6 blocks are promised of 10, and 6 more were given away"
    assert blocks.admit(second, 16) == 0
    assert blocks.grow(second, 16)
    assert not blocks.grow(second, 17), "beyond its promise it took what was promised to the first"
    assert blocks.grow(first, 24)
    blocks.check_integrity([first, second])
    blocks.release(first)
    assert blocks.grow(second, 40), "what was given back may be taken beyond a promise"
    blocks.check_integrity([second])
    blocks.release(second)
    assert blocks.num_free == 10


@pytest.mark.parametrize(("num_computed", "num_shared"), [(0, 0), (8, 0), (10, 0), (11, 10), (12, 10)])
def test_blocks_a_prompt_is_shared_with_a_sibling_once_it_is_computed(num_computed: int, num_shared: int) -> None:
    blocks = BlockManager(num_blocks=12, block_size=4, reuse=False)
    parent = make_sequence(0, A[:11], 4)
    assert blocks.admit(parent, 15) == 0
    assert blocks.grow(parent, 12)
    parent.num_computed_tokens = num_computed
    assert blocks.admit(make_sequence(1, A[:11], 4, parent=parent), 15) == num_shared


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data(), reuse=st.booleans())
def test_blocks_growth_within_a_promise_never_fails(data: st.DataObject, reuse: bool) -> None:
    blocks = BlockManager(num_blocks=12, block_size=4, reuse=reuse)
    running: list[tuple[Sequence, int]] = []
    for number in range(40):
        action = data.draw(st.sampled_from(["admit", "sibling", "sibling", "grow", "grow", "beyond", "release"]))
        if action in {"admit", "sibling"}:
            prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=20))
            parent = data.draw(st.sampled_from(running))[0] if action == "sibling" and running else None
            sequence = make_sequence(number, parent.token_ids if parent else prompt, 20, parent=parent)
            promised = data.draw(st.integers(sequence.num_tokens, sequence.max_len))
            num_cached = blocks.admit(sequence, promised)
            if num_cached is not None:
                assert 0 <= num_cached < sequence.num_tokens
                sequence.num_computed_tokens = num_cached
                running.append((sequence, promised))
        elif running:
            sequence, promised = data.draw(st.sampled_from(running))
            if action == "grow":
                length = data.draw(st.integers(min(promised, sequence.num_computed_tokens + 1), promised))
                assert blocks.grow(sequence, length)
                sequence.num_computed_tokens = max(sequence.num_computed_tokens, min(length, sequence.num_tokens))
                blocks.commit(sequence)
            elif action == "beyond":
                free = blocks.num_free
                assert blocks.grow(sequence, sequence.max_len) or blocks.num_free <= free
            else:
                # Nobody gives up room between a copy and its step.
                _end_step(blocks, running)
                running.remove((sequence, promised))
                blocks.release(sequence)
        if action != "grow":
            _end_step(blocks, running)


def _end_step(blocks: BlockManager, running: list[tuple[Sequence, int]]) -> None:
    copies = blocks.take_copies()
    sources, targets = {source for source, _, _ in copies}, {target for _, target, _ in copies}
    assert len(targets) == len(copies)
    assert sources.isdisjoint(targets)
    blocks.check_integrity([sequence for sequence, _ in running])


def test_blocks_a_block_to_copy_is_given_to_nobody_before() -> None:
    """Its owner goes in the very step in which the last of those that share it writes."""
    blocks = BlockManager(num_blocks=6, block_size=4, reuse=False)
    parent = _compute(blocks, A[:7], max_tokens=1)
    sibling = make_sequence(1, A[:7], 1, parent=parent)
    assert blocks.admit(sibling, 8) == 6
    lent = parent.block_table[1]
    assert sibling.block_table == parent.block_table
    blocks.release(parent)
    assert blocks.grow(sibling, 7)
    taker = make_sequence(2, B, 4)
    assert blocks.admit(taker, 16) is None, "three are free: the one to copy is not"
    assert blocks.admit(taker, 12) == 0
    assert blocks.grow(taker, 12)
    assert lent not in taker.block_table
    assert blocks.take_copies() == ((lent, sibling.block_table[1], 4),)
    assert blocks.take_copies() == ()
    blocks.check_integrity([sibling, taker])
    assert blocks.num_free == 1


def test_blocks_an_equal_beginning_is_shared_and_counted_once() -> None:
    blocks = BlockManager(num_blocks=12, block_size=4)
    first = _compute(blocks, [*A, 1])
    assert blocks.num_used == 4
    second = _compute(blocks, [*A[:8], 2, 2, 2, 2, 2])
    assert second.block_table[:2] == first.block_table[:2]
    assert set(second.block_table[2:]).isdisjoint(first.block_table)
    assert (blocks.num_used, blocks.num_free, blocks.num_reused) == (4 + 2, 6, 2)
    blocks.check_integrity([first, second])
    blocks.release(first)
    assert blocks.num_used == 4, "what the second shares stays in use"
    third = _compute(blocks, [*A, 3])
    assert blocks.num_reused == 2 + 3
    blocks.check_integrity([second, third])
    blocks.release(second)
    blocks.release(third)
    assert (blocks.num_used, blocks.num_free) == (0, 12)


@pytest.mark.parametrize(("num_tokens", "num_found"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_blocks_the_last_token_is_computed_in_any_case(num_tokens: int, num_found: int) -> None:
    """So a prompt of exactly k blocks finds k - 1 of them: the logits after its last token are wanted."""
    blocks = BlockManager(num_blocks=8, block_size=4)
    _use(blocks, [*A, 1])
    assert _num_found(blocks, [*A, 1][:num_tokens]) == num_found


def test_blocks_only_computed_blocks_are_found() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    sequence = make_sequence(0, A, 4)
    assert blocks.admit(sequence, 16) == 0
    assert blocks.grow(sequence, 12)
    blocks.commit(sequence)
    assert _num_found(blocks, [*A, 1]) == 0
    sequence.num_computed_tokens = 7
    blocks.commit(sequence)
    assert _num_found(blocks, [*A, 1]) == 4


def test_blocks_no_more_of_a_prompt_is_hashed_than_can_be_known() -> None:
    """A long prompt that nobody has computed costs the loop one block's digest, not all of them."""
    blocks = BlockManager(num_blocks=24, block_size=4)
    _use(blocks, [*A, 1])
    for prompt, num_found, num_hashed in ((B * 4, 0, 1), ([*A[:8], *B * 3], 8, 3), ([*A, 1], 12, 3)):
        sequence = make_sequence(0, prompt, 1)
        assert blocks.num_cached(sequence) == num_found
        assert len(sequence.block_digests) == num_hashed


def test_blocks_the_least_recently_used_goes_first_and_tails_before_heads() -> None:
    blocks = BlockManager(num_blocks=7, block_size=4)
    _use(blocks, [*A, 1])
    _use(blocks, [*B, 1])
    left = []
    for num_taken in range(1, 8):
        pressed = copy.deepcopy(blocks)
        _use(pressed, [0] * (num_taken * 4 - 1), reuse_cache=False)
        left.append((_num_found(pressed, [*A, 1]), _num_found(pressed, [*B, 1])))
    assert left == [(12, 12), (8, 12), (4, 12), (0, 12), (0, 8), (0, 4), (0, 0)]


def test_blocks_use_makes_recent() -> None:
    blocks = BlockManager(num_blocks=7, block_size=4)
    _use(blocks, [*A, 1])
    _use(blocks, [*B, 1])
    _use(blocks, [*A[:8], 1])
    _use(blocks, [0] * 19, reuse_cache=False)
    assert (_num_found(blocks, [*A, 1]), _num_found(blocks, [*B, 1])) == (8, 0)


def test_blocks_a_block_in_use_is_never_taken() -> None:
    blocks = BlockManager(num_blocks=6, block_size=4)
    _use(blocks, [*A, 1])
    reader = _compute(blocks, [*A[:8], 7])
    table = list(reader.block_table)
    taker = make_sequence(1, [0] * 12, 1, reuse_cache=False)
    assert blocks.admit(taker, 13) is None, "three blocks are free, four are wanted"
    assert blocks.admit(taker, 12) == 0
    assert blocks.grow(taker, 12)
    assert set(taker.block_table).isdisjoint(table)
    assert reader.block_table == table
    blocks.check_integrity([reader, taker])


def test_blocks_a_block_that_is_revived_is_no_room_for_the_rest() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    _use(blocks, [*A, 1])
    holder = _compute(blocks, [5], reuse_cache=False)
    assert blocks.num_free == 3
    assert blocks.admit(make_sequence(1, [*A, 1], 1), 14) is None, "three found, one more is wanted, none is left"
    blocks.check_integrity([holder])


def test_blocks_whoever_opts_out_neither_reads_nor_leaves() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    _use(blocks, [*A, 1], reuse_cache=False)
    assert _num_found(blocks, [*A, 1]) == 0
    _use(blocks, [*A, 1])
    assert _num_found(blocks, [*A, 1]) == 12
    assert _num_found(blocks, [*A, 1], reuse_cache=False) == 0


def test_blocks_salts_never_share() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    _use(blocks, [*A, 1], cache_salt="one")
    assert [_num_found(blocks, [*A, 1], cache_salt=salt) for salt in ("one", "two", "")] == [12, 0, 0]


def test_blocks_without_reuse_nothing_is_shared_or_kept() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4, reuse=False)
    first, second = _compute(blocks, [*A, 1]), _compute(blocks, [*A, 1])
    assert set(first.block_table).isdisjoint(second.block_table)
    blocks.release(first)
    assert _num_found(blocks, [*A, 1]) == 0


def test_blocks_a_sequence_that_lost_its_room_finds_its_own_blocks_again() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    sequence = _compute(blocks, A[:6], max_tokens=10)
    for token_id in range(5):
        sequence.token_ids.append(token_id)
        assert blocks.grow(sequence, sequence.num_tokens)
        sequence.num_computed_tokens = sequence.num_tokens
    table = list(sequence.block_table)
    blocks.release(sequence)
    sequence.num_computed_tokens = 0
    assert blocks.admit(sequence, 16) == 8, "two full blocks, one of them partly its output"
    assert sequence.block_table == table[:2]


@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=2, max_size=2),
    salts=st.lists(st.sampled_from(["", "a", "b"]), min_size=2, max_size=2),
)
def test_blocks_digests_are_equal_exactly_where_salt_and_all_tokens_before_are(
    texts: list[list[int]], salts: list[str]
) -> None:
    one, two = (
        block_digests(make_sequence(0, text, 1, cache_salt=salt), 3, 2) for text, salt in zip(texts, salts, strict=True)
    )
    for index in range(3):
        end = 2 * (index + 1)
        assert (one[index] == two[index]) == (salts[0] == salts[1] and texts[0][:end] == texts[1][:end])
    assert len(set(one)) == 3, "a block is told from the same tokens further on"
