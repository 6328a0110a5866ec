"""Every attention that one value describes, over chunks and slots full of junk, against its definition in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from tests.tensorrt.number_formats import Array
from tests.tensorrt.slot_networks import Chunk, SlotHost
from tests.tensorrt.small_networks import normal, trt
from tests.tensorrt.word_networks import SLOT_LEN, lowered, weight
from trident_compiler.families.words import Attention
from trident_compiler.tensorrt.lowering import TensorRTLowering

HEADS, VOCAB = 6, 40
SLOPES, SINKS = np.exp2(-np.arange(HEADS, dtype=np.float32) / 2), 2 * normal(HEADS, seed=9)
TOKENS = np.random.default_rng(3).permutation(VOCAB)[:30].tolist()
OTHERS = TOKENS[::-1]


@dataclass(frozen=True)
class Kind:
    """An attention.

    Args:
        kv_heads: of `HEADS`.
        size: of a head of keys.
        v_size: of a head of values.
        by_products: the fused layer cannot do it.
        special: what `Attention` is told.
    """

    kv_heads: int = 2
    size: int = 16
    v_size: int = 16
    by_products: bool = True
    special: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "alibi": Kind(by_products=False, special={"alibi_slopes": weight("slopes", SLOPES)}),
    "alibi and a window": Kind(
        by_products=False, special={"alibi_slopes": weight("slopes", SLOPES), "sliding_window": 7}
    ),
    "sinks": Kind(special={"sinks": weight("sinks", SINKS)}),
    "sinks and a window": Kind(special={"sinks": weight("sinks", SINKS), "sliding_window": 7}),
    "soft cap": Kind(kv_heads=6, special={"soft_cap": 1.5}),
    "soft cap and a window": Kind(kv_heads=3, special={"soft_cap": 1.5, "sliding_window": 7}),
    "one key head, smaller values": Kind(kv_heads=1, size=24, v_size=16),
    "larger values": Kind(size=8, v_size=20),
    "all of it": Kind(
        size=24,
        special={
            "alibi_slopes": weight("slopes", SLOPES),
            "sinks": weight("sinks", SINKS),
            "soft_cap": 3.0,
            "sliding_window": 7,
        },
    ),
}


def tables(kind: Kind) -> list[Array]:
    """Queries, keys and values of each token id."""
    counts = ((HEADS, kind.size), (kind.kv_heads, kind.size), (kind.kv_heads, kind.v_size))
    return [2 * normal(VOCAB, heads * size, seed=seed) for seed, (heads, size) in enumerate(counts)]


def write(net: TensorRTLowering, kind: Kind) -> Any:
    counts = (HEADS, kind.kv_heads, kind.kv_heads)
    heads = [
        net.split_heads(net.embedding(weight(name, table)), count)
        for name, table, count in zip("qkv", tables(kind), counts, strict=True)
    ]
    query, key, value = heads
    return net.attention(0, query, key, value, Attention(kind.size**-0.5, **kind.special))


def defined(kind: Kind, tokens: list[int]) -> torch.Tensor:
    """Attention by its definition, `[tokens, heads * v_size]`."""
    length = len(tokens)
    query, key, value = (
        torch.from_numpy(table[tokens]).double().reshape(length, count, -1).transpose(0, 1)
        for table, count in zip(tables(kind), (HEADS, kind.kv_heads, kind.kv_heads), strict=True)
    )
    key, value = (each.repeat_interleave(HEADS // kind.kv_heads, 0) for each in (key, value))
    scores = query @ key.transpose(1, 2) * kind.size**-0.5
    if cap := kind.special.get("soft_cap"):
        scores = torch.tanh(scores / cap) * cap
    distance = torch.arange(length) - torch.arange(length)[:, None]
    if "alibi_slopes" in kind.special:
        scores = scores + torch.from_numpy(SLOPES).double()[:, None, None] * distance
    hidden = (distance > 0) | (distance <= -kind.special.get("sliding_window", length))
    scores = scores.masked_fill(hidden, -torch.inf)
    if "sinks" in kind.special:
        sinks = torch.from_numpy(SINKS).double()[:, None, None].expand(-1, length, 1)
        scores = torch.cat([scores, sinks], -1)
    attended: torch.Tensor = scores.softmax(-1)[..., :length] @ value
    return attended.transpose(0, 1).reshape(length, -1)


def served(host: SlotHost) -> tuple[Array, Array]:
    """Two sequences in slots 1 and 3: chunks beside each other, and tokens alone."""
    steps = [{1: 13}, {3: 9, 1: 1}, {1: 1, 3: 8}, {1: 1, 3: 1}]
    texts, past = {1: TOKENS, 3: OTHERS}, {1: 0, 3: 0}
    found: dict[int, list[Array]] = {1: [], 3: []}
    for step in steps:
        chunks = [Chunk(slot, past[slot], texts[slot][past[slot] : past[slot] + count]) for slot, count in step.items()]
        for slot, rows in host.step(chunks).items():
            found[slot].append(rows)
            past[slot] += step[slot]
    return np.concatenate(found[1]), np.concatenate(found[3])


@pytest.mark.parametrize(("compute", "tolerance"), [("fp32", 1e-5), ("fp16", 4e-3), ("bf16", 3e-2)])
@pytest.mark.parametrize("name", KINDS)
def test_attention_words_compute_what_is_defined(name: str, compute: str, tolerance: float) -> None:
    kind = KINDS[name]
    program = lowered(lambda net: write(net, kind), compute)
    assert any(step.operation == "ATTENTION" for step in program.steps) != kind.by_products
    for found, tokens in zip(served(SlotHost(program, 5)), (TOKENS, OTHERS), strict=True):
        expected = defined(kind, tokens[: len(found)]).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.by_products])
def test_attention_words_products_leave_out_what_is_no_number(name: str, compute: str) -> None:
    kind = KINDS[name]
    program = lowered(lambda net: write(net, kind), compute)
    usual, poisoned = served(SlotHost(program, 5)), served(SlotHost(program, 5, junk=np.nan))
    for some, others in zip(usual, poisoned, strict=True):
        np.testing.assert_array_equal(some, others)


def test_attention_words_biases_are_finite_however_far_a_key_is() -> None:
    """A kernel that meets a tile of minus infinity makes NaN of it."""
    steep = weight("slopes", np.full(2, 5000, np.float32))
    program = lowered(
        lambda net: net._inputs.by_token(net._attention._masks.additive(steep, SLOT_LEN, trt.float16)), "fp16"
    )
    biases = SlotHost(program, 1).step([Chunk(0, 0, TOKENS)])[0].reshape(len(TOKENS), 2, SLOT_LEN)
    assert np.isfinite(biases).all()
    assert biases[20, 0, [21, 20, 19, 18]].tolist() == [-30000, 0, -5000, -10000]
    assert biases[20, 0, 0] == -30000
