"""The first steps of an engine, before any request.

Owns which steps those are. A compiled network does some of its work when it computes for the first time: the first step
of a loaded engine takes several times as long as the next, and no request should be the one that pays. Never looks at
what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trident_backend.engine.protocol import Engine, Int32Array, StepBatch

#: Sequences that decode side by side, at most; kernels do not change with more.
_MOST_SEQUENCES = 8


def warm_up(engine: Engine) -> None:
    """Compute a prompt as long as a step takes, and one token each for one and for several sequences.

    The KV blocks that are written are the first ones, which no sequence has yet.

    Raises:
        EngineError: the device failed.
    """
    spec = engine.spec
    prompt = min(spec.max_num_tokens, spec.max_seq_len, spec.num_blocks * spec.block_size)
    several = min(_MOST_SEQUENCES, spec.max_num_seqs, spec.num_blocks)
    for new_tokens, past_tokens, num_sequences in ((prompt, 0, 1), (1, min(1, prompt - 1), 1), (1, 0, several)):
        engine.submit(_batch(spec.block_size, new_tokens, past_tokens, num_sequences))
        engine.collect()


def _batch(block_size: int, new_tokens: int, past_tokens: int, num_sequences: int) -> StepBatch:
    """Return a step of equal sequences, each of its own blocks."""
    length = past_tokens + new_tokens
    blocks_each = -(-length // block_size)
    begins = range(0, num_sequences * new_tokens + 1, new_tokens)
    return StepBatch(
        token_ids=np.zeros(num_sequences * new_tokens, np.int32),
        position_ids=_ints(list(range(past_tokens, length)) * num_sequences),
        past_lens=_ints([past_tokens] * num_sequences),
        subsequence_begins=_ints(begins),
        block_indices=_ints(range(num_sequences * blocks_each)),
        block_indices_begins=_ints(range(0, num_sequences * blocks_each + 1, blocks_each)),
        max_context_len=length,
        logit_rows=_ints([end - 1 for end in begins[1:]]),
        block_copies=np.zeros((0, 3), np.int32),
    )


def _ints(values: Sequence[int]) -> Int32Array:
    return np.array(values, np.int32)
