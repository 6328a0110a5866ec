"""Random histories of the slot manager, on a cache that remembers who wrote what.

More than the scheduler ever does: sequences are let go in the midst of a step, after they have grown, and lose their
slot; steps fail; what was written is no number. What is found must be the longest that is there, whoever gets a slot
gets the lowest, and what was there moves to where it costs least. The model asks the manager which of several it has
chosen, and holds the choice to the rules.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

import pytest

from tests.fakes.core import make_sequence
from trident_backend.kv.slots import SlotManager
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import shares_prompt

HASH_BLOCK_SIZE, SLOT_SIZE = 4, 40


class Value(NamedTuple):
    """What a token leaves in the cache: nobody else may read what is salted or private."""

    token_id: int
    salt: str
    private: int | None


#: Of a failed step, or behind what was copied.
JUNK = Value(-1, "junk", None)


def values(sequence: Sequence, num_tokens: int) -> list[Value]:
    """What belongs into the sequence's slot."""
    family = sequence.parent or sequence
    private = None if sequence.reuse_cache else family.sequence_id
    return [Value(token_id, sequence.cache_salt, private) for token_id in sequence.token_ids[:num_tokens]]


def num_equal(one: list[Value], two: list[Value]) -> int:
    """How long they are alike."""
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


class Moving(NamedTuple):
    """What has to make way; when it was last of use; where it goes."""

    values: list[Value]
    last_use: int
    spare: int


class Model:
    """A manager, the cache that it speaks of, and what ought to be known."""

    def __init__(self, num_slots: int, *, reuse: bool) -> None:
        self.rng = random.Random(num_slots)  # noqa: S311 (a test's choice)
        self.reuse = reuse
        self.slots = SlotManager(num_slots, SLOT_SIZE, hash_block_size=HASH_BLOCK_SIZE, reuse=reuse)
        self.cache = [[JUNK] * SLOT_SIZE for _ in range(num_slots)]
        self.known: list[list[Value]] = [[] for _ in range(num_slots)]
        self.last_uses = [0] * num_slots
        self.running: list[Sequence] = []
        self.lost: list[Sequence] = []
        self.ready: set[Sequence] = set()
        self.pins: dict[Sequence, int] = {}
        self.replaces: dict[Sequence, tuple[int, int]] = {}
        self.moving: dict[Sequence, Moving] = {}
        self.has_moved: set[int] = set()
        self.grown: list[tuple[Sequence, int]] = []
        self.num_sequences = 0
        self.num_uses = 0
        self.met: Counter[str] = Counter()

    @property
    def free(self) -> set[int]:
        """Slots that are in no sequence's hands and not to be read."""
        return set(range(len(self.cache))) - {s.block_table[0] for s in self.running} - set(self.pins.values())

    def use(self, slot: int) -> None:
        self.num_uses += 1
        self.last_uses[slot] = self.num_uses

    def new(self) -> Sequence:
        rng = self.rng
        self.num_sequences += 1
        if self.lost and rng.random() < 0.3:
            return self.lost.pop(rng.randrange(len(self.lost)))
        if self.running and rng.random() < 0.4:
            first = rng.choice(self.running)
            first = first.parent or first
            prompt = first.token_ids[: first.num_prompt_tokens]
            same = {"cache_salt": first.cache_salt, "reuse_cache": first.reuse_cache}
            return make_sequence(self.num_sequences, prompt, SLOT_SIZE - len(prompt), parent=first, **same)
        text = rng.choice([[0] * 30, [1, 2] * 15, [*[0] * 12, *[3] * 12]])
        prompt = [*text[: rng.randrange(30)], *rng.choices(range(4), k=rng.randint(1, 5))]
        salt, reuse_cache = rng.choice(["", "", "salt"]), rng.random() < 0.8
        fields = {"cache_salt": salt, "reuse_cache": reuse_cache}
        return make_sequence(self.num_sequences, prompt, SLOT_SIZE - len(prompt), **fields)

    def admit(self) -> None:
        sequence, slots, free = self.new(), self.slots, self.free
        parent, own = sequence.parent, values(sequence, sequence.num_tokens)
        longest = 0
        if self.reuse and sequence.reuse_cache:
            longest = (
                max(min(num_equal(known, own), len(own) - 1) for known in self.known)
                // HASH_BLOCK_SIZE
                * HASH_BLOCK_SIZE
            )
        assert slots.num_cached(sequence) == longest
        shares = parent in self.ready and shares_prompt(sequence)
        if shares:
            longest = sequence.num_prompt_tokens - 1
        assert slots.num_free == len(free)
        num_cached = slots.admit(sequence, sequence.max_len)
        if num_cached is None:
            assert not free
            self.lost.append(sequence)
            return
        assert num_cached == longest
        [slot] = sequence.block_table
        assert slot == min(free)
        sequence.num_computed_tokens = num_cached
        self.running.append(sequence)
        holders = {s for s, known in enumerate(self.known) if num_cached and num_equal(known, own) >= num_cached}
        in_place = slot in holders and not shares
        self.met["in place" if in_place else "shared" if shares else "found" if num_cached else "not found"] += 1
        if num_cached and not in_place:
            source = slots._accounts[sequence].source
            assert source is not None
            assert source in ([parent.block_table[0]] if shares and parent else (holders & free or holders))
            self.pins[sequence] = source
            self.met["found where it had moved"] += source in self.has_moved
            if source in free:
                self.replaces[sequence] = source, num_cached
        self.make_way(sequence, slot, num_cached if in_place else 0)

    def make_way(self, sequence: Sequence, slot: int, num_left: int) -> None:
        """A slot has been given away: what was in it, or was to come there, goes elsewhere."""
        old, self.known[slot] = self.known[slot], self.known[slot][:num_left]
        self.has_moved.discard(slot)
        for mover, moving in list(self.moving.items()):
            if moving.spare == slot:
                assert not old
                self.met["sent on"] += 1
                del self.moving[mover]
                self.move(mover, moving.values, moving.last_use)
        beginnings = [values(s, num_found) for s, (source, num_found) in self.replaces.items() if source == slot]
        alike = [num_left, *(len(beginning) for beginning in beginnings if old[: len(beginning)] == beginning)]
        is_elsewhere = any(s != slot and known[: len(old)] == old for s, known in enumerate(self.known))
        if not old or is_elsewhere or any(num_alike and 2 * num_alike >= len(old) for num_alike in alike):
            assert slots_move(self.slots, sequence) is None
        else:
            self.move(sequence, old, self.last_uses[slot])

    def move(self, sequence: Sequence, old: list[Value], last_use: int) -> None:
        """To a blank slot, or to that which has not been of use for longest; lost if that is what moves."""
        spare = slots_move(self.slots, sequence)
        choice = self.free - {moving.spare for moving in self.moving.values()}
        blank = {slot for slot in choice if not self.known[slot]}
        oldest = min(choice, key=self.last_uses.__getitem__, default=None)
        if blank:
            assert spare in blank
        elif oldest is not None and self.last_uses[oldest] < last_use:
            assert spare == oldest
        else:
            self.met["nowhere to go" if oldest is None else "the oldest"] += 1
            assert spare is None
        if spare is not None:
            self.known[spare] = []
            self.has_moved.discard(spare)
            self.moving[sequence] = Moving(old, last_use, spare)

    def grow(self) -> None:
        waiting = [s for s in self.running if s not in dict(self.grown) and s.num_remaining_tokens]
        if waiting:
            sequence = self.rng.choice(waiting)
            num_new = self.rng.randint(1, sequence.num_remaining_tokens)
            assert self.slots.grow(sequence, min(SLOT_SIZE, sequence.num_computed_tokens + num_new + 2)), (
                "with draft tokens"
            )
            self.grown.append((sequence, num_new))
            self.unpin(sequence)

    def unpin(self, sequence: Sequence) -> None:
        if sequence in self.pins:
            self.use(self.pins.pop(sequence))

    def leave(self) -> None:
        if self.running:
            sequence = self.rng.choice(self.running)
            self.met["left as it had grown"] += sequence in dict(self.grown)
            self.grown = [grown for grown in self.grown if grown[0] is not sequence]
            self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        [slot] = sequence.block_table
        self.slots.release(sequence)
        assert sequence.block_table == []
        self.met["a move broken off"] += self.moving.pop(sequence, None) is not None
        self.replaces.pop(sequence, None)
        self.unpin(sequence)
        self.use(slot)
        self.running.remove(sequence)
        self.ready.discard(sequence)
        if sequence.num_tokens < SLOT_SIZE and self.rng.random() < 0.5:
            sequence.num_computed_tokens = 0
            self.lost.append(sequence)

    def commit(self, sequence: Sequence) -> None:
        """It has computed, so what was copied for it is there."""
        self.slots.commit(sequence)
        self.ready.add(sequence)
        if self.reuse and sequence.reuse_cache:
            num_full = sequence.num_computed_tokens // HASH_BLOCK_SIZE * HASH_BLOCK_SIZE
            self.known[sequence.block_table[0]] = values(sequence, num_full)
        moving = self.moving.pop(sequence, None)
        if moving is not None:
            self.known[moving.spare], self.last_uses[moving.spare] = moving.values, moving.last_use
            self.has_moved.add(moving.spare)
        source, num_found = self.replaces.pop(sequence, (0, 0))
        is_alike = num_equal(self.known[source], values(sequence, num_found)) == num_found > 0
        if is_alike and source in self.free and 2 * num_found >= len(self.known[source]):
            self.met["replaced"] += 1
            self.known[source] = []

    def step(self) -> None:
        copies = self.slots.take_copies()
        self.slots.check_integrity(self.running)
        self.met["read and written at once"] += bool({c[0] for c in copies} & {c[1] for c in copies})
        failed = self.rng.random() < 0.05
        for source, target, num_tokens in copies:
            assert source != target
            assert num_tokens > 0
            old = [JUNK] * num_tokens if failed else self.cache[source][:num_tokens]
            self.cache[target] = old + [JUNK] * (SLOT_SIZE - num_tokens)
        for sequence, num_new in self.grown:
            past, written = sequence.num_computed_tokens, values(sequence, sequence.num_computed_tokens + num_new)
            row = self.cache[sequence.block_table[0]]
            row[past:] = [JUNK] * (SLOT_SIZE - past)
            no_number = self.rng.random() < 0.03
            if not (failed or no_number):
                row[past : past + num_new] = written[past:]
                sequence.num_computed_tokens += num_new
            if failed or no_number:
                self.met["failed"] += 1
                self.release(sequence)
                continue
            self.commit(sequence)
            if not sequence.num_remaining_tokens and sequence.num_tokens < SLOT_SIZE:
                sequence.token_ids.append(self.rng.randrange(4))
        self.grown.clear()

    def check(self) -> None:
        self.slots.check_integrity(self.running)
        for sequence in self.ready:
            num_computed = sequence.num_computed_tokens
            assert self.cache[sequence.block_table[0]][:num_computed] == values(sequence, num_computed)
        for row, known in zip(self.cache, self.known, strict=True):
            assert row[: len(known)] == known, "also what has moved"
        assert self.slots.num_free == len(self.free)
        self.met["to be read, and free"] += self.slots.num_used > len(self.running)


def slots_move(slots: SlotManager, sequence: Sequence) -> int | None:
    """The slot that the manager has chosen for what was in a sequence's."""
    move = slots._accounts[sequence].move
    return None if move is None else move.spare


MOMENTS = {"shared", "not found", "failed", "left as it had grown"}
WITH_REUSE = {
    "in place", "found", "read and written at once", "to be read, and free", "sent on", "the oldest", "nowhere to go",
    "a move broken off", "replaced", "found where it had moved",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("num_slots", [1, 5, 12])
def test_slots_random_everybody_reads_what_is_theirs_and_as_much_as_there_is(num_slots: int, reuse: bool) -> None:
    model = Model(num_slots, reuse=reuse)
    actions = [model.admit, model.admit, model.grow, model.grow, model.grow, model.leave]
    for _ in range(1500):
        for _ in range(model.rng.choice([1, 4, 4, 12, 30])):
            model.rng.choice(actions)()
        model.step()
        model.check()
    while model.running:
        model.release(model.running[0])
    model.check()
    assert model.slots.num_used == 0
    if num_slots > 1:
        met = {moment for moment, times in model.met.items() if times >= 5}
        assert met >= MOMENTS | (WITH_REUSE if reuse else set())
