"""Parts that most decoders share, in the operations of the network language.

Owns how a linear layer, a norm, self-attention and a feed-forward are written, and how each is divided among devices.
Never knows a family: names, sizes and the order of things are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from trident_compiler.families.decoder_config import DecoderConfig
from trident_compiler.families.ops import Ops, Weights
from trident_compiler.families.words import Activation, Attention
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import LinearPart
from trident_compiler.weights.weights import Weight

Value = TypeVar("Value")


@dataclass(frozen=True)
class Norm:
    """The norm of a family.

    Args:
        epsilon: under the root.
        is_rms: RMS norm; layer norm otherwise.
        has_bias: `name.bias` is added.
        has_scale: `name.weight` is multiplied.
        plus: is added to the stored scale.
    """

    epsilon: float
    is_rms: bool = True
    has_bias: bool = False
    has_scale: bool = True
    plus: float = 0.0


class Parts(Generic[Value]):
    """The parts of one network.

    Args:
        net: what it is written in.
        weights: of one device's share.
        config: the sizes, of the whole.
        norm: how the family normalises.
    """

    def __init__(self, net: Ops[Value], weights: Weights, config: DecoderConfig, norm: Norm) -> None:
        self.net = net
        self.weights = weights
        self.config = config
        self._norm = norm

    @property
    def num_heads(self) -> int:
        """Query heads of this device."""
        return self.config.num_heads // self.weights.num_devices

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values of this device."""
        return self.config.num_kv_heads // self.weights.num_devices

    @property
    def query_size(self) -> int:
        """Features of all query heads together, on all devices."""
        return self.config.num_heads * self.config.head_dim

    @property
    def kv_size(self) -> int:
        """Features of all key heads together, on all devices."""
        return self.config.num_kv_heads * self.config.head_dim

    def embedding(self, name: str, width: int | None = None) -> Value:
        """Return the rows of a table `[vocab, width]` for the step's tokens; None is the hidden size."""
        return self.net.embedding(
            self.weights.embedding(name, self.config.vocab_size, width or self.config.hidden_size)
        )

    def positioned(self, hidden: Value, name: str, offset: int = 0) -> Value:
        """Return the sum of hidden values and a table's rows for each token's position plus `offset`."""
        config = self.config
        table = self.weights.positions(name, config.max_position_embeddings + offset, config.hidden_size)
        return self.net.add(hidden, self.net.position_embedding(table, offset))

    def column(
        self, x: Value, source: str | LinearPart, out_size: int, *, in_size: int | None = None, bias: bool = False
    ) -> Value:
        """Return a column-parallel linear layer's outputs, this device's part of `out_size`."""
        part, width = _part(source), in_size or self.config.hidden_size
        weight = self.weights.matrix(part.weight(out_size, width), out_size, width, Role.COLUMN)
        return self.net.linear(x, weight, self._bias(part, out_size, Role.COLUMN_BIAS) if bias else None)

    def row(
        self, x: Value, source: str | LinearPart, in_size: int, *, out_size: int | None = None, bias: bool = False
    ) -> Value:
        """Return a row-parallel linear layer's outputs, summed over all devices; `in_size` is that of the whole."""
        part, width = _part(source), out_size or self.config.hidden_size
        weight = self.weights.matrix(part.weight(width, in_size), width, in_size, Role.ROW)
        return self.net.linear(x, weight, self._bias(part, width, Role.VECTOR) if bias else None, all_reduce=True)

    def whole(
        self,
        x: Value,
        source: str | LinearPart,
        out_size: int,
        in_size: int,
        *,
        bias: bool = False,
        exact: bool = False,
    ) -> Value:
        """Return the outputs of a linear layer that every device computes; `exact` ones are never quantized."""
        part, role = _part(source), Role.EXACT if exact else Role.WHOLE
        weight = self.weights.matrix(part.weight(out_size, in_size), out_size, in_size, role)
        return self.net.linear(x, weight, self._bias(part, out_size, Role.VECTOR) if bias else None)

    def norm(
        self, x: Value, name: str, size: int | None = None, role: Role = Role.VECTOR, *, all_reduce: bool = False
    ) -> Value:
        """Return a value normalised over its last axis by the family's norm.

        Args:
            x: wide, or heads.
            name: of the module whose weight and bias are taken.
            size: of the scale; None is the hidden size.
            role: of the scale; `COLUMN_BIAS` where it is divided with the heads that it scales.
            all_reduce: `x` is this device's part of what is normalised together.
        """
        norm, length = self._norm, size or self.config.hidden_size
        scale = self.weights.vector(f"{name}.weight", length, role, plus=norm.plus) if norm.has_scale else None
        if norm.is_rms:
            return self.net.rms_norm(x, scale, norm.epsilon, all_reduce=all_reduce)
        assert not all_reduce, "a mean and a variance over devices are no operation of the language"
        bias = self.weights.vector(f"{name}.bias", length, role) if norm.has_bias else None
        return self.net.layer_norm(x, scale, bias, norm.epsilon)

    def query_heads(self, x: Value) -> Value:
        """Return wide queries as this device's heads."""
        return self.net.split_heads(x, self.num_heads)

    def kv_heads(self, x: Value) -> Value:
        """Return wide keys or values as this device's heads."""
        return self.net.split_heads(x, self.num_kv_heads)

    def qkv(
        self,
        x: Value,
        query: str | LinearPart,
        key: str | LinearPart,
        value: str | LinearPart,
        *,
        bias: bool = False,
    ) -> tuple[Value, Value, Value]:
        """Return the queries, keys and values of wide `x` as this device's heads."""
        return (
            self.query_heads(self.column(x, query, self.query_size, bias=bias)),
            self.kv_heads(self.column(x, key, self.kv_size, bias=bias)),
            self.kv_heads(self.column(x, value, self.kv_size, bias=bias)),
        )

    def rotated(self, layer: int, heads: Value) -> Value:
        """Return heads rotated as the layer's kind says."""
        rotary = self.config.layers[layer].rotary
        return heads if rotary is None else self.net.apply_rotary(heads, rotary)

    def attend(
        self,
        layer: int,
        query: Value,
        key: Value,
        value: Value,
        *,
        scale: float | None = None,
        alibi_slopes: Weight | None = None,
        sinks: Weight | None = None,
        soft_cap: float | None = None,
    ) -> Value:
        """Return the layer's attention over rotated heads, in its window; the scale is `head_dim^-0.5` unless given."""
        factor = self.config.head_dim**-0.5 if scale is None else scale
        window = self.config.layers[layer].sliding_window
        how = Attention(factor, window, alibi_slopes, sinks, soft_cap)
        return self.net.attention(layer, query, key, value, how)

    def alibi_slopes(self, factor: float = 1.0) -> Weight:
        """Return the slopes of ALiBi for each query head of this device, times a factor.

        Heads that are no power of two have those of the next power: every second one, then the others, as many as
        there are heads.
        """
        count = 1 << (self.config.num_heads - 1).bit_length()
        slopes = np.exp2(-8 / count * np.arange(1, count + 1))
        if count != self.config.num_heads:
            slopes = np.concatenate([slopes[1::2], slopes[0::2]])[: self.config.num_heads]
        return self.weights.constant("alibi slopes", (slopes * factor).astype(np.float32), Role.COLUMN_BIAS)

    def gated(
        self,
        x: Value,
        gate: str | LinearPart,
        up: str | LinearPart,
        down: str | LinearPart,
        activation: Activation = Activation.SILU,
        *,
        inner_size: int | None = None,
        bias: bool = False,
    ) -> Value:
        """Return a gated feed-forward: `down(activation(gate(x)) * up(x))`."""
        inner = inner_size or self.config.intermediate_size
        left = self.net.activation(self.column(x, gate, inner, bias=bias), activation)
        return self.row(self.net.multiply(left, self.column(x, up, inner, bias=bias)), down, inner, bias=bias)

    def plain(
        self, x: Value, up: str | LinearPart, down: str | LinearPart, activation: Activation, *, bias: bool = False
    ) -> Value:
        """Return a feed-forward without a gate: `down(activation(up(x)))`."""
        inner = self.config.intermediate_size
        return self.row(self.net.activation(self.column(x, up, inner, bias=bias), activation), down, inner, bias=bias)

    def scaled(self, x: Value, factor: float) -> Value:
        """Return a value times a number, which is often 1."""
        return x if factor == 1 else self.net.multiply_number(x, factor)

    def capped(self, x: Value, cap: float | None) -> Value:
        """Return `cap * tanh(x / cap)`, or the value itself where there is no cap."""
        if cap is None:
            return x
        return self.net.multiply_number(self.net.activation(self.net.multiply_number(x, 1 / cap), Activation.TANH), cap)

    def logits(self, hidden: Value, table: str, head: str, *, bias: bool = False, in_size: int | None = None) -> Value:
        """Return the logits of normalised rows; by the table of embeddings where the configuration ties them."""
        config = self.config
        if config.tie_word_embeddings:
            self.weights.skip(head)
        name = table if config.tie_word_embeddings else head
        weight = self.weights.head(name, config.vocab_size, in_size or config.hidden_size)
        vector = f"{head.removesuffix('.weight')}.bias"
        shift = self.weights.vector(vector, config.vocab_size, Role.COLUMN_BIAS) if bias else None
        return self.net.all_gather(self.net.linear(hidden, weight, shift))

    def _bias(self, part: LinearPart, size: int, role: Role) -> Weight:
        return self.weights.vector(part.bias(size), size, role)


def _part(source: str | LinearPart) -> LinearPart:
    return LinearPart(source) if isinstance(source, str) else source
