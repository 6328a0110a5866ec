"""A family that Trident does not ship, written as one would be added: OLMo 2.

Its norms come after each branch, and those of queries and keys span all heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import inverse_frequencies
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.registry import Family
from trident_compiler.weights.roles import Role


@dataclass(frozen=True)
class Olmo2Config:
    """Sizes of a decoder."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_position_embeddings: int
    epsilon: float
    frequencies: npt.NDArray[np.float32] = field(repr=False, compare=False)

    def reduced(self, *, num_layers: int, vocab_size: int, factor: int) -> Olmo2Config:
        """A smaller one of the same kind."""
        return replace(
            self,
            num_layers=min(num_layers, self.num_layers),
            vocab_size=min(vocab_size, self.vocab_size),
            intermediate_size=max(64, self.intermediate_size // factor),
        )


def read_config(config: JsonConfig) -> Olmo2Config:
    """Understand config.json."""
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    max_positions = config.integer("max_position_embeddings")
    return Olmo2Config(
        config.integer("num_hidden_layers"),
        hidden_size,
        config.integer("intermediate_size"),
        num_heads,
        config.integer("num_key_value_heads", num_heads),
        config.integer("vocab_size"),
        max_positions,
        config.number("rms_norm_eps"),
        inverse_frequencies(config, hidden_size // num_heads, max_positions),
    )


def olmo2(net: Ops[Value], config: Olmo2Config, weights: Weights) -> Value:
    """Write the network."""
    hidden_size, head_dim = config.hidden_size, config.hidden_size // config.num_heads
    key_size = config.num_kv_heads * head_dim

    def linear(x: Value, name: str, out_size: int, in_size: int, role: Role = Role.COLUMN) -> Value:
        return net.linear(x, weights.matrix(f"{name}.weight", out_size, in_size, role), all_reduce=role is Role.ROW)

    def norm(x: Value, name: str, size: int = hidden_size) -> Value:
        return net.rms_norm(x, weights.vector(f"{name}.weight", size), config.epsilon)

    def heads(x: Value, attention: str, kind: str, size: int, count: int) -> Value:
        x = norm(linear(x, f"{attention}.{kind}_proj", size, hidden_size), f"{attention}.{kind}_norm", size)
        return net.apply_rope(net.split_heads(x, count), config.frequencies)

    hidden = net.embedding(weights.embedding("model.embed_tokens.weight", config.vocab_size, hidden_size))
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        values = net.split_heads(linear(hidden, f"{attention}.v_proj", key_size, hidden_size), config.num_kv_heads)
        attended = net.attention(
            layer,
            heads(hidden, attention, "q", hidden_size, config.num_heads),
            heads(hidden, attention, "k", key_size, config.num_kv_heads),
            values,
            scale=head_dim**-0.5,
            sliding_window=None,
        )
        output = linear(attended, f"{attention}.o_proj", hidden_size, hidden_size, Role.ROW)
        hidden = net.add(hidden, norm(output, f"{prefix}.post_attention_layernorm"))
        gate = net.silu(linear(hidden, f"{prefix}.mlp.gate_proj", config.intermediate_size, hidden_size))
        up = linear(hidden, f"{prefix}.mlp.up_proj", config.intermediate_size, hidden_size)
        down = linear(
            net.multiply(gate, up), f"{prefix}.mlp.down_proj", hidden_size, config.intermediate_size, Role.ROW
        )
        hidden = net.add(hidden, norm(down, f"{prefix}.post_feedforward_layernorm"))
    hidden = norm(net.select_rows(hidden), "model.norm")
    return net.all_gather(net.linear(hidden, weights.head("lm_head.weight", config.vocab_size, hidden_size)))


OLMO2 = Family(("olmo2",), read_config, olmo2)
