"""The network language: the few operations in which model families are written, and the weights that they ask for.

Owns the meaning and the shapes of each operation. Never imports a compiler: a lowering implements `Ops` and decides
what a `Value` is; a family only passes values on. All sequences of a step lie packed on one axis of T tokens, and R of
their rows get logits. A value is either wide, `[T, features]`, or split into heads, `[T, heads, head_dim]`.

Where several devices share a network, each computes some of the features or heads of a column-parallel value, with its
part of the weights; `all_reduce` and `all_gather` bring the devices' results together. A network on one device is the
same text: there those do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.families.words import Activation, Attention, Experts, Gating, Routing
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import TensorPart
from trident_compiler.weights.weights import Weight

Value = TypeVar("Value")


class Weights(Protocol):
    """The weights of one device's share of a network, by the checkpoint's names.

    A family says of each weight where it is stored, the shape that the whole of it must have, and its role. A name
    stands for the whole tensor of that name.

    Raises:
        CheckpointError: in every method, a tensor is missing or has another shape.
    """

    @property
    def num_devices(self) -> int:
        """Devices that share the network."""
        ...

    def embedding(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        """Return the `[vocab, hidden]` table of `Role.EMBEDDING`."""
        ...

    def positions(self, source: str | TensorPart, num_positions: int, hidden_size: int) -> Weight:
        """Return the `[positions, hidden]` table of learned positions, `Role.POSITIONS`."""
        ...

    def head(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        """Return this device's rows of the `[vocab, hidden]` output projection, `Role.HEAD`."""
        ...

    def matrix(self, source: str | TensorPart, out_size: int, in_size: int, role: Role) -> Weight:
        """Return this device's part of the `[out, in]` weight of a linear layer.

        Args:
            source: where it is stored.
            out_size: outputs of the whole.
            in_size: inputs of the whole.
            role: `COLUMN`, `ROW`, `WHOLE` or `EXACT`.
        """
        ...

    def stack(self, sources: Sequence[str | TensorPart], out_size: int, in_size: int, role: Role) -> Weight:
        """Return this device's part of several `[out, in]` weights, as one of `[members, out, in]`.

        Args:
            sources: where each is stored.
            out_size: outputs of each whole.
            in_size: inputs of each whole.
            role: `COLUMN`, `ROW` or `WHOLE`, of each member; `HEADS` divides the members among devices.
        """
        ...

    def vector(self, source: str | TensorPart, size: int, role: Role = Role.VECTOR, *, plus: float = 0.0) -> Weight:
        """Return a norm's scale or a bias, exact, as float32 `[size]`, or a part of it for `Role.COLUMN_BIAS`.

        `plus` is added to every value: there are norms that store how much their scale differs from 1.
        """
        ...

    def stacked_vector(self, sources: Sequence[str | TensorPart], size: int, role: Role = Role.VECTOR) -> Weight:
        """Return several vectors as one of `[members, size]`; `Role.HEAD_VECTORS` divides them among devices."""
        ...

    def constant(self, name: str, values: npt.NDArray[np.float32], role: Role = Role.VECTOR) -> Weight:
        """Return values that follow from the configuration; with `Role.COLUMN_BIAS` this device's part of them."""
        ...

    def skip(self, *endings: str) -> None:
        """Accept tensors whose names end so without using them: copies, and what follows from the configuration."""
        ...

    def skip_module(self, name: str) -> None:
        """Accept the tensors of a module without using them: one that only training needs."""
        ...


class Ops(Protocol[Value]):
    """The operations of a network. Activations are floating point; their precision is the lowering's choice."""

    def embedding(self, table: Weight) -> Value:
        """Return the rows of `table [vocab, hidden]` for the step's token ids, `[T, hidden]`."""
        ...

    def position_embedding(self, table: Weight, offset: int = 0) -> Value:
        """Return the rows of `table [positions, hidden]` for each token's position plus `offset`, `[T, hidden]`."""
        ...

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Value:
        """Return `x @ weight.T + bias` with `weight [out, in]` and `bias [out]`, `[T, out]`.

        `all_reduce` sums the products of all devices before the bias is added, where `x` and `weight` are row-parallel
        parts.
        """
        ...

    def head_linear(self, x: Value, weight: Weight) -> Value:
        """Return each head's product with its own matrix: `[T, heads, in]`, `weight [heads, out, in]`, to
        `[T, heads, out]`.
        """
        ...

    def all_gather(self, x: Value) -> Value:
        """Return the parts of all devices side by side, in the order of their ranks: `[T, part]` to `[T, features]`."""
        ...

    def rms_norm(self, x: Value, scale: Weight | None, epsilon: float, *, all_reduce: bool = False) -> Value:
        """Return `x / sqrt(mean(x^2) + epsilon) * scale` over the last axis; the shape stays.

        The scale is `[last axis]`, or `[heads * head_dim]` or `[heads, head_dim]` where each head has its own; None is
        1. `all_reduce` takes the mean over the features of all devices, where `x` is a column-parallel part.
        """
        ...

    def layer_norm(self, x: Value, scale: Weight | None, bias: Weight | None, epsilon: float) -> Value:
        """Return `(x - mean) / sqrt(variance + epsilon) * scale + bias` over the last axis; the shape stays.

        Scale and bias are shaped as that of `rms_norm`; None is 1, or 0.
        """
        ...

    def split_heads(self, x: Value, num_heads: int) -> Value:
        """Return `[T, heads * head_dim]` as `[T, heads, head_dim]`."""
        ...

    def merge_heads(self, x: Value) -> Value:
        """Return `[T, heads, head_dim]` as `[T, heads * head_dim]`."""
        ...

    def slice(self, x: Value, begin: int, end: int) -> Value:
        """Return the features from `begin` to before `end` of the last axis, of every head where there are heads."""
        ...

    def concat(self, *parts: Value) -> Value:
        """Return values side by side along the last axis; the other axes are the same."""
        ...

    def apply_rotary(self, x: Value, rotary: Rotary) -> Value:
        """Rotate the first `rotary.rotated` features of heads by each token's position, one half against the other.

        Args:
            x: `[T, heads, head_dim]`; the features behind those that are rotated stay.
            rotary: by which angles.
        """
        ...

    def attention(self, layer: int, query: Value, key: Value, value: Value, attention: Attention) -> Value:
        """Return causal attention of each token over its own sequence, through the layer's KV cache.

        Args:
            layer: which cache; every layer uses its own once, in order.
            query: `[T, heads, head_dim]`.
            key: `[T, kv_heads, head_dim]`; written to the cache. Query heads share key heads in equal groups.
            value: `[T, kv_heads, v_head_dim]`; written to the cache.
            attention: the scale of the scores, and what is special.

        Returns:
            `[T, heads * v_head_dim]`.
        """
        ...

    def activation(self, x: Value, kind: Activation) -> Value:
        """Return a function of each number; the shape stays."""
        ...

    def clamp(self, x: Value, low: float | None, high: float | None) -> Value:
        """Return numbers that are at least `low` and at most `high`, where those are given."""
        ...

    def multiply(self, a: Value, b: Value) -> Value:
        """Return the product of two values of one shape, or of `[T, features]` and `[T, 1]`."""
        ...

    def multiply_number(self, x: Value, number: float) -> Value:
        """Return `x * number`."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """Return the sum of two values of one shape."""
        ...

    def add_number(self, x: Value, number: float) -> Value:
        """Return `x + number`."""
        ...

    def experts(self, x: Value, logits: Value, routing: Routing, experts: Experts, gating: Gating[Value]) -> Value:
        """Return the weighted sum of the outputs of each token's chosen experts, `[T, hidden]`.

        Where devices share the experts' inner features, the sum over all devices.

        Args:
            x: `[T, hidden]`.
            logits: the router's, `[T, experts]`.
            routing: how experts are chosen by them, and weighted.
            experts: the weights of their feed-forwards.
            gating: makes the input of the down projection from the outputs of the gate and the up projection, in these
                operations; it is given values of one expert or of all, and may use none but those of single numbers.
        """
        ...

    def select_rows(self, x: Value) -> Value:
        """Return the rows of `[T, hidden]` that get logits, `[R, hidden]`."""
        ...
