"""The network language: the few operations in which model families are written, and the weights that they ask for.

Owns the meaning and the shapes of each operation. Never imports a compiler: a lowering implements `Ops` and decides
what a `Value` is; a family only passes values on. All sequences of a step lie packed on one axis of T tokens, and R of
their rows get logits. A value is either wide, `[T, features]`, or split into heads, `[T, heads, head_dim]`.

Where several devices share a network, each computes some of the features or heads of a column-parallel value, with its
part of the weights; `all_reduce` and `all_gather` bring the devices' results together. A network on one device is the
same text: there those do nothing.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import Weight

Value = TypeVar("Value")


class Weights(Protocol):
    """The weights of one device's share of a network, by the checkpoint's names.

    A family says of each tensor its name, the shape that the whole of it must have, and its role.

    Raises:
        CheckpointError: in every method, a tensor is missing or has another shape.
    """

    @property
    def num_devices(self) -> int:
        """Devices that share the network."""
        ...

    def embedding(self, name: str, vocab_size: int, hidden_size: int) -> Weight:
        """Return the `[vocab, hidden]` table of `Role.EMBEDDING`."""
        ...

    def head(self, name: str, vocab_size: int, hidden_size: int) -> Weight:
        """Return this device's rows of the `[vocab, hidden]` output projection, `Role.HEAD`."""
        ...

    def matrix(self, name: str, out_size: int, in_size: int, role: Role) -> Weight:
        """Return this device's part of the `[out, in]` weight of a linear layer.

        Args:
            name: of the tensor.
            out_size: outputs of the whole.
            in_size: inputs of the whole.
            role: `COLUMN`, `ROW` or `WHOLE`.
        """
        ...

    def vector(self, name: str, size: int, role: Role = Role.VECTOR) -> Weight:
        """Return a norm's scale or a bias, exact, as float32 `[size]`, or a part of it for `Role.COLUMN_BIAS`."""
        ...

    def skip(self, *endings: str) -> None:
        """Accept tensors whose names end so without using them: copies, and what follows from the configuration."""
        ...


class Ops(Protocol[Value]):
    """The operations of a network. Activations are floating point; their precision is the lowering's choice."""

    def embedding(self, table: Weight) -> Value:
        """Return the rows of `table [vocab, hidden]` for the step's token ids, `[T, hidden]`."""
        ...

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Value:
        """Return `x @ weight.T + bias` with `weight [out, in]` and `bias [out]`, `[T, out]`.

        `all_reduce` sums the products of all devices before the bias is added, where `x` and `weight` are row-parallel
        parts.
        """
        ...

    def all_gather(self, x: Value) -> Value:
        """Return the parts of all devices side by side, in the order of their ranks: `[T, part]` to `[T, features]`."""
        ...

    def rms_norm(self, x: Value, scale: Weight, epsilon: float) -> Value:
        """Return `x / sqrt(mean(x^2) + epsilon) * scale` over the last axis; the shape stays."""
        ...

    def split_heads(self, x: Value, num_heads: int) -> Value:
        """Return `[T, heads * head_dim]` as `[T, heads, head_dim]`."""
        ...

    def apply_rope(self, x: Value, inverse_frequencies: npt.NDArray[np.float32]) -> Value:
        """Rotate heads by each token's position, one half against the other as Hugging Face does.

        Args:
            x: `[T, heads, head_dim]`.
            inverse_frequencies: `[head_dim / 2]`, radians a position.
        """
        ...

    def attention(
        self, layer: int, query: Value, key: Value, value: Value, *, scale: float, sliding_window: int | None
    ) -> Value:
        """Return causal attention of each token over its own sequence, through the layer's KV cache.

        Args:
            layer: which cache; every layer uses its own once, in order.
            query: `[T, heads, head_dim]`.
            key: `[T, kv_heads, head_dim]`; written to the cache. Query heads share key heads in equal groups.
            value: as key.
            scale: factor on query times key.
            sliding_window: a token sees the last so many tokens, itself included; None is all.

        Returns:
            `[T, heads * head_dim]`.
        """
        ...

    def silu(self, x: Value) -> Value:
        """Return `x * sigmoid(x)`."""
        ...

    def multiply(self, a: Value, b: Value) -> Value:
        """Return the elementwise product."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """Return the elementwise sum."""
        ...

    def select_rows(self, x: Value) -> Value:
        """Return the rows whose logits are wanted: `[T, features]` to `[R, features]`."""
        ...
