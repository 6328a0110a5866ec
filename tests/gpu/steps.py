"""Steps that every engine of these tests computes, and what is expected of greedy answers.

Owns the mix of chunks. Knows of an engine what the protocol says, and nothing of GPUs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.backend.engine.driver import DrivenSequence, Driver, Floats, whole
from trident_backend.engine.protocol import Engine, execute

_LENGTHS = (101, 7, 64, 33)
#: Which sequence computes how many of its tokens, by step: prompts in chunks beside single tokens, in any order, with
#: sequences that pause, and a last one that begins when others have ended.
_STEPS = (
    ((0, 40), (1, 3)),
    ((1, 1), (0, 1), (2, 50)),
    ((0, 25), (1, 1), (2, 1), (3, 30)),
    ((2, 13), (3, 1)),
    ((3, 2), (0, 35), (1, 2)),
)


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids of the tiny tokenizer."""
    return [int(token) for token in np.random.default_rng(seed).integers(4, 400, length)]


def mixed_steps(engine: Engine, seed: int = 0) -> list[tuple[list[int], Floats]]:
    """Each sequence's tokens and all its logits, `[tokens, vocab]`, computed a few at a time beside the others."""
    driver = Driver(engine, seed)
    sequences = [DrivenSequence(prompt(length, seed + length)) for length in _LENGTHS]
    pieces: list[list[Floats]] = [[] for _ in sequences]
    for step in _STEPS:
        outcome = driver.step([(sequences[index], count) for index, count in step])
        for (index, _), logits in zip(step, outcome, strict=True):
            pieces[index].append(logits)
    assert all(sequence.num_computed == len(sequence.tokens) for sequence in sequences)
    return [(sequence.tokens, np.concatenate(parts)) for sequence, parts in zip(sequences, pieces, strict=True)]


def continued_from_copies(engine: Engine, tokens: list[int], num_copied: int, copies: list[list[int]]) -> Floats:
    """The logits behind the first `num_copied` tokens, which come into the last copy's slot by those copies alone.

    Args:
        engine: with slots.
        tokens: computed whole in the first copy's slot before.
        num_copied: tokens that each copy takes.
        copies: from which slot, to which; one after another, in one step.
    """
    driver = Driver(engine)
    first = DrivenSequence(tokens[:num_copied], block_table=[copies[0][0]])
    driver.step([(first, num_copied)])
    last = DrivenSequence(tokens, num_computed=num_copied, block_table=[copies[-1][1]])
    batch = driver.batch([(last, len(tokens) - num_copied)])
    rows = [[source, target, num_copied] for source, target in copies]
    return whole(execute(engine, replace(batch, block_copies=np.array(rows, np.int32))))


def assert_likeliest(logits: Floats, num_prompt_tokens: int, output_ids: list[int], tolerance: float) -> None:
    """Each token of an answer is the likeliest of an exact engine, or as good as it.

    Args:
        logits: of prompt and answer, `[tokens, vocab]`, by the exact engine.
        num_prompt_tokens: of them.
        output_ids: the answer.
        tolerance: how much less likely a token may be, in logits: twice what the engines' logits differ by.
    """
    rows = logits[num_prompt_tokens - 1 : num_prompt_tokens - 1 + len(output_ids)]
    chosen = rows[np.arange(len(output_ids)), output_ids]
    np.testing.assert_array_less(rows.max(1) - chosen, tolerance)
