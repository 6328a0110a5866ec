"""The shapes in which a TensorRT network is called: decode and prefill, an optimization profile each.

Owns the ranges of every input. Never builds anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.engine.tensorrt import names
from trident_compiler.tensorrt.builder import Profile, ShapeRange

_Range = tuple[int, int, int]
_ONE: _Range = (1, 1, 1)


@dataclass(frozen=True)
class Caches:
    """The KV cache inputs of a network: two for each layer.

    Args:
        layers: key heads on this device, and the sizes of a head of keys and of one of values, for each layer.
        slot_len: positions in a slot.
    """

    layers: tuple[tuple[int, int, int], ...]
    slot_len: int


def profiles(caches: Caches, max_num_seqs: int, max_chunk: int) -> tuple[Profile, Profile]:
    """Return the profiles of decode calls, many sequences by a token each, and of prefill calls, one sequence by many.

    Args:
        caches: the network's.
        max_num_seqs: sequences of a decode call, at most.
        max_chunk: tokens of a prefill call, at most.
    """
    seqs: _Range = (1, max_num_seqs, max_num_seqs)
    chunk: _Range = (1, max_chunk, max_chunk)
    # A prompt needs one row of logits, unless it is scored.
    return _profile(caches, seqs, _ONE, seqs), _profile(caches, _ONE, chunk, (1, 1, max_chunk))


def _profile(caches: Caches, seqs: _Range, chunk: _Range, rows: _Range) -> Profile:
    """Return a profile from the least, best and most of sequences, of tokens of each, and of rows of logits."""
    tokens = ShapeRange(*((num, length) for num, length in zip(seqs, chunk, strict=True)))
    each = ShapeRange(*((num,) for num in seqs))
    profile = {
        names.TOKEN_IDS: tokens,
        names.POSITION_IDS: tokens,
        names.PAST_LENS: each,
        names.CONTEXT_LENS: each,
        names.LOGIT_ROWS: ShapeRange(*((row,) for row in rows)),
    }
    for layer, (num_kv_heads, *widths) in enumerate(caches.layers):
        for name, width in zip(names.caches(layer), widths, strict=True):
            profile[name] = ShapeRange(*((num, num_kv_heads, caches.slot_len, width) for num in seqs))
    return profile
