"""The shapes in which a TensorRT network is called: generation and context, an optimization profile each.

Owns the ranges of every input. Never builds anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.tensorrt.builder import Profile, ShapeRange

_Range = tuple[int, int, int]
_ONE: _Range = (1, 1, 1)


@dataclass(frozen=True)
class Caches:
    """The KV cache inputs of a network, all alike.

    Args:
        num_layers: each has one for keys and one for values.
        num_kv_heads: of this device.
        slot_len: positions in a slot.
        head_dim: of each key and value.
    """

    num_layers: int
    num_kv_heads: int
    slot_len: int
    head_dim: int


def profiles(caches: Caches, max_num_seqs: int, max_chunk: int) -> tuple[Profile, Profile]:
    """Profile 0 is generation, many sequences by a token each; profile 1 is context, one sequence by many tokens."""
    seqs: _Range = (1, max_num_seqs, max_num_seqs)
    chunk: _Range = (1, max_chunk, max_chunk)
    # Of a prompt one row of logits is wanted, unless it is scored.
    return _profile(caches, seqs, _ONE, seqs), _profile(caches, _ONE, chunk, (1, 1, max_chunk))


def _profile(caches: Caches, seqs: _Range, chunk: _Range, rows: _Range) -> Profile:
    """Least, best and most of sequences, of tokens of each, and of rows of logits."""
    tokens = ShapeRange(*((num, length) for num, length in zip(seqs, chunk, strict=True)))
    each = ShapeRange(*((num,) for num in seqs))
    slots = ShapeRange(*((num, caches.num_kv_heads, caches.slot_len, caches.head_dim) for num in seqs))
    names = [f"{kind}_cache.{layer}" for layer in range(caches.num_layers) for kind in ("key", "value")]
    return {
        "token_ids": tokens,
        "position_ids": tokens,
        "past_lens": each,
        "context_lens": each,
        "logit_rows": ShapeRange(*((row,) for row in rows)),
        **dict.fromkeys(names, slots),
    }
