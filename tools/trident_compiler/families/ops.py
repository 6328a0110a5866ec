"""The small vocabulary in which model families are written.

Owns the meaning and the shapes of each word. Knows no compiler: a lowering implements `Vocabulary` and decides what a
`Value` is; a family only passes values on. All sequences of a step lie packed on one axis of T tokens, and R of their
rows get logits. A value is either wide, `[T, features]`, or split into heads, `[T, heads, head_dim]`.

Where several devices share a network, each computes some of the features or heads of a divided value, and its weights
are parts that were asked for with a `Split`; two words bring the devices' results together. A network on one device is
the same text: there those words do nothing.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trident_compiler.weights.weights import Weight

Value = TypeVar("Value")


class Vocabulary(Protocol[Value]):
    """What a network is made of. Activations are floating point; their precision is the lowering's choice."""

    def embedding(self, table: Weight) -> Value:
        """The rows of `table [vocab, hidden]` for the step's token ids: `[T, hidden]`."""
        ...

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None, *, summed: bool = False) -> Value:
        """`x @ weight.T + bias` with `weight [out, in]` and `bias [out]`: `[T, out]`.

        `summed` where `x` and `weight` are parts of the features: the products of all devices are summed before the
        bias is added.
        """
        ...

    def gathered(self, x: Value) -> Value:
        """The parts of all devices side by side, in the order of their ranks: `[T, part]` to `[T, features]`."""
        ...

    def rms_norm(self, x: Value, scale: Weight, epsilon: float) -> Value:
        """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis; the shape stays."""
        ...

    def split_heads(self, x: Value, num_heads: int) -> Value:
        """`[T, heads * head_dim]` as `[T, heads, head_dim]`."""
        ...

    def rotary(self, x: Value, inverse_frequencies: npt.NDArray[np.float32]) -> Value:
        """Turn heads by each token's position, halves against each other as Hugging Face does.

        Args:
            x: `[T, heads, head_dim]`.
            inverse_frequencies: `[head_dim / 2]`, radians a position.
        """
        ...

    def attention(
        self, layer: int, query: Value, key: Value, value: Value, *, scale: float, sliding_window: int | None
    ) -> Value:
        """Causal attention of each token over its own sequence, through the layer's KV cache.

        Args:
            layer: which cache; every layer uses its own once.
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
        """`x * sigmoid(x)`."""
        ...

    def multiply(self, a: Value, b: Value) -> Value:
        """Elementwise."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """Elementwise."""
        ...

    def select_rows(self, x: Value) -> Value:
        """The rows whose logits are wanted: `[T, features]` to `[R, features]`."""
        ...
