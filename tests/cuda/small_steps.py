"""Steps of the small program, each held against what numpy computes of whole sequences.

Owns the sequences, their blocks and random histories of them. Never loads an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda import small_programs, twins
from tests.cuda.small_programs import SMALL, VOCAB, Small, logits_of
from tests.tensorrt.double.engines import installed
from trident_backend.engine.protocol import Engine, StepBatch, execute

Floats = npt.NDArray[np.float32]
TOLERANCE = 2e-4


@contextmanager
def small_machine() -> Iterator[None]:
    """Install the doubles on a new machine, which knows the kernels that are made up for the small program."""
    found = twins.find
    with pytest.MonkeyPatch.context() as patch, installed():
        patch.setattr(twins, "find", lambda name: small_programs.TWINS.get(name) or found(name))
        yield


@dataclass
class Sequence:
    """Tokens, the logits after each of them, and the blocks that hold those which were computed."""

    tokens: list[int]
    table: list[int] = field(default_factory=list)
    num_computed: int = 0

    def __post_init__(self) -> None:
        self.logits: Floats = logits_of(self.tokens)


def new_sequence(rng: np.random.Generator, length: int, prefix: list[int] | None = None) -> Sequence:
    prefix = prefix or []
    return Sequence([*prefix, *(int(token) for token in rng.integers(0, VOCAB, length - len(prefix)))])


def grow(sequence: Sequence, num_tokens: int, free: list[int], small: Small = SMALL) -> None:
    """Take blocks for so many more tokens."""
    while len(sequence.table) * small.block_size < sequence.num_computed + num_tokens:
        sequence.table.append(free.pop())


def pack(
    chunks: list[tuple[Sequence, int]],
    wanted: list[int] | None = None,
    copies: list[tuple[int, int, int]] | None = None,
) -> StepBatch:
    """Return the step of the next tokens of each sequence; logits of all rows or of some."""
    lens = [count for _, count in chunks]
    past_lens = [sequence.num_computed for sequence, _ in chunks]
    at = [sequence.num_computed + index for sequence, count in chunks for index in range(count)]
    tokens = [sequence.tokens[sequence.num_computed + index] for sequence, count in chunks for index in range(count)]
    tables = [sequence.table for sequence, _ in chunks]
    return StepBatch(
        token_ids=np.array(tokens, np.int32),
        position_ids=np.array(at, np.int32),
        past_lens=np.array(past_lens, np.int32),
        subsequence_begins=np.cumsum([0, *lens]).astype(np.int32),
        block_indices=np.array([block for table in tables for block in table], np.int32),
        block_indices_begins=np.cumsum([0, *map(len, tables)]).astype(np.int32),
        max_context_len=max(past + count for past, count in zip(past_lens, lens, strict=True)),
        logit_rows=np.array(range(len(tokens)) if wanted is None else wanted, np.int32),
        block_copies=np.array(copies or [], np.int32).reshape(-1, 3),
    )


def rows_of(logits: Any) -> Floats:
    num_rows, vocab_size = logits.shape
    rows: Floats = logits.read(np.arange(num_rows)[:, None], np.arange(vocab_size)[None])
    return rows


def step(engine: Engine, chunks: list[tuple[Sequence, int]], **options: Any) -> Floats:
    """Compute; every row that is wanted must be what numpy has."""
    batch = pack(chunks, **options)
    logits = rows_of(execute(engine, batch))
    expected = np.concatenate([one.logits[one.num_computed : one.num_computed + count] for one, count in chunks])
    np.testing.assert_allclose(logits, expected[batch.logit_rows], atol=TOLERANCE, rtol=TOLERANCE)
    for sequence, count in chunks:
        sequence.num_computed += count
    return logits


def history(engine: Engine, seed: int, num_steps: int = 30, small: Small = SMALL) -> None:
    """Play random steps: prompts in chunks, single tokens, shared prefixes, blocks copied, guesses taken back."""
    rng = np.random.default_rng(seed)
    free = [int(block) for block in rng.permutation(small.num_blocks)]
    running: list[Sequence] = []
    for _ in range(num_steps):
        copies: list[tuple[int, int, int]] = []
        if len(running) < small.max_num_seqs and rng.random() < 0.5:
            new = new_sequence(rng, int(rng.integers(2, 120)))
            if running and rng.random() < 0.5:
                new = sibling(rng, running[int(rng.integers(len(running)))], free, copies, small)
            running.append(new)
        room, chunks = small.max_num_tokens, []
        for one in running:
            most = min(len(one.tokens) - one.num_computed, room)
            if most and (one.num_computed == 0 or rng.random() < 0.8):
                count = 1 if rng.random() < 0.4 else int(rng.integers(1, most + 1))
                grow(one, count, free, small)
                chunks.append((one, count))
                room -= count
        if not chunks:
            continue
        num_tokens = small.max_num_tokens - room
        step(engine, chunks, wanted=[row for row in range(num_tokens) if rng.random() < 0.5], copies=copies)
        for one, count in chunks:
            if rng.random() < 0.2:
                one.num_computed -= int(rng.integers(0, min(count, 4)))  # guesses that were not taken
        running = [one for one in running if one.num_computed < len(one.tokens) and rng.random() < 0.95]


def sibling(
    rng: np.random.Generator, one: Sequence, free: list[int], copies: list[tuple[int, int, int]], small: Small
) -> Sequence:
    """Return a sequence that begins as another: whole blocks are shared, the last one is copied in the same step."""
    num_same = one.num_computed
    new = new_sequence(rng, num_same + int(rng.integers(1, 40)), one.tokens[:num_same])
    whole, rest = divmod(num_same, small.block_size)
    new.table = one.table[:whole]
    new.num_computed = num_same
    if rest:
        new.table.append(free.pop())
        copies.append((one.table[whole], new.table[-1], rest))
    return new
