"""What a network consists of, found by writing it once with shapes instead of values.

Owns the counting: the weights that a family asks for with their roles, the attention of each layer, and how much a
token's computation holds. So planners, probes and simulations know every family, and no formula of any. Never reads a
checkpoint, and knows no compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trident_compiler.families.ops import Ops, Weights
from trident_compiler.weights.formats import FP32
from trident_compiler.weights.roles import Role, WeightUse
from trident_compiler.weights.weights import Weight
from trident_ensemble.contract.errors import PlanError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AttentionShape:
    """The attention of one layer.

    Args:
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        head_dim: size of a head.
        sliding_window: tokens that a token sees, itself included; None is all.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None

    @property
    def kv_size(self) -> int:
        """Numbers in the keys and values of one token."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Outline:
    """A network, in outline.

    Args:
        weights: every tensor that is asked for, once a role.
        layers: the attention of each layer.
        layer_features: numbers that one token's way through the largest layer computes, all of them together.
    """

    weights: tuple[WeightUse, ...]
    layers: tuple[AttentionShape, ...]
    layer_features: int

    @property
    def is_tied(self) -> bool:
        """Whether the output projection is the table of embeddings."""
        tables = {use.name for use in self.weights if use.role is Role.EMBEDDING}
        return any(use.role is Role.HEAD and use.name in tables for use in self.weights)

    def size(self, *roles: Role) -> int:
        """Return how many numbers the tensors of some roles hold."""
        return sum(use.size for use in self.weights if use.role in roles)

    def check_division(self, num_ranks: int) -> None:
        """Refuse a number of devices, 1 or more, that cannot share the network.

        Raises:
            PlanError: names what is not divided, and its size.
        """
        for what, size in self._divided():
            if size % num_ranks:
                raise PlanError(f"--tensor-parallel: {num_ranks} devices cannot share the checkpoint's {size} {what}")

    def _divided(self) -> list[tuple[str, int]]:
        """Each thing that devices share, for people, and how many there are."""
        heads = [("attention heads", layer.num_heads) for layer in self.layers]
        heads += [("key and value heads", layer.num_kv_heads) for layer in self.layers]
        axes = {"out": ("rows", 0), "in": ("columns", 1)}
        tensors = []
        for use in self.weights:
            if use.role.split is not None:
                name, axis = axes[use.role.split.value]
                tensors.append((f"{name} of {use.name}", use.shape[axis]))
        return heads + tensors


def outline(write: Callable[[Ops[Shape], Weights], Shape]) -> Outline:
    """Write a network with shapes, and return what it consists of."""
    net, weights = _ShapeOps(), _RecordedWeights()
    write(net, weights)
    return Outline(tuple(weights.uses), tuple(net.layers), net.layer_features)


class _RecordedWeights:
    """`Weights` that remember what is asked for; their values are zeros that take no memory."""

    num_devices = 1

    def __init__(self) -> None:
        self.uses: dict[WeightUse, None] = {}

    def embedding(self, name: str, vocab_size: int, hidden_size: int) -> Weight:
        return self._use(name, Role.EMBEDDING, vocab_size, hidden_size)

    def head(self, name: str, vocab_size: int, hidden_size: int) -> Weight:
        return self._use(name, Role.HEAD, vocab_size, hidden_size)

    def matrix(self, name: str, out_size: int, in_size: int, role: Role) -> Weight:
        return self._use(name, role, out_size, in_size)

    def vector(self, name: str, size: int, role: Role = Role.VECTOR) -> Weight:
        return self._use(name, role, size)

    def skip(self, *endings: str) -> None:
        pass

    def _use(self, name: str, role: Role, *shape: int) -> Weight:
        self.uses[WeightUse(name, role, shape)] = None
        return Weight(name, FP32, shape, np.broadcast_to(np.float32(0), shape))


class _ShapeOps:
    """`Ops` on shapes of one token: `[features]`, or `[heads, head_dim]`."""

    def __init__(self) -> None:
        self.layers: list[AttentionShape] = []
        #: Numbers computed before the first attention, between attentions, and after the last.
        self._computed_between: list[int] = [0]
        self._is_layer = True

    def embedding(self, table: Weight) -> Shape:
        return table.shape[1:]

    def linear(self, x: Shape, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Shape:
        del all_reduce
        assert x == weight.shape[1:], f"{weight.name}: {weight.shape} cannot multiply {x}"
        assert bias is None or bias.shape == weight.shape[:1]
        return self._computed(weight.shape[:1])

    def all_gather(self, x: Shape) -> Shape:
        return x

    def rms_norm(self, x: Shape, scale: Weight, epsilon: float) -> Shape:
        del epsilon
        assert x[-1:] == scale.shape, f"{scale.name}: {scale.shape} cannot scale {x}"
        return self._computed(x)

    def split_heads(self, x: Shape, num_heads: int) -> Shape:
        return num_heads, x[0] // num_heads

    def apply_rope(self, x: Shape, inverse_frequencies: npt.NDArray[np.float32]) -> Shape:
        assert 2 * len(inverse_frequencies) == x[1], "halves are rotated against each other"
        return self._computed(x)

    def attention(
        self, layer: int, query: Shape, key: Shape, value: Shape, *, scale: float, sliding_window: int | None
    ) -> Shape:
        del scale
        assert layer == len(self.layers), "layers are written in order, each once"
        assert key == value
        self.layers.append(AttentionShape(query[0], key[0], key[1], sliding_window))
        self._computed_between.append(0)
        return self._computed((query[0] * value[1],))

    def silu(self, x: Shape) -> Shape:
        return self._computed(x)

    def multiply(self, a: Shape, b: Shape) -> Shape:
        assert a == b
        return self._computed(a)

    def add(self, a: Shape, b: Shape) -> Shape:
        assert a == b
        return self._computed(a)

    def select_rows(self, x: Shape) -> Shape:
        self._is_layer = False
        return x

    @property
    def layer_features(self) -> int:
        """Numbers that the largest layer computes of one token."""
        first, *between, last = self._computed_between
        # What precedes the first attention and what follows the last are two parts of a layer.
        return max([first + last, *between])

    def _computed(self, shape: Shape) -> Shape:
        if self._is_layer:
            self._computed_between[-1] += math.prod(shape)
        return shape
