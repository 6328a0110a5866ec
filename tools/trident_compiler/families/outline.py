"""What a network consists of, found by writing it once with shapes instead of values.

Owns the counting: the weights that a family asks for with their roles, the attention of each layer, and how much a
token's computation holds. So planners, probes and simulations know every family, and no formula of any. Never reads a
checkpoint, and knows no compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.families.features import Feature
from trident_compiler.families.ops import Ops, Weights
from trident_compiler.families.words import Activation, Attention, Experts, Gating, Routing
from trident_compiler.weights.formats import FP32
from trident_compiler.weights.roles import Role, Split, WeightUse
from trident_compiler.weights.tensor_parts import TensorPart
from trident_compiler.weights.weights import Weight
from trident_ensemble.contract.errors import PlanError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AttentionShape:
    """The attention of one layer.

    Args:
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        head_dim: size of a head of queries and keys.
        v_head_dim: size of a head of values.
        sliding_window: tokens that a token sees, itself included; None is all.
        has_alibi: scores have a bias by distance.
        has_sinks: the softmax has a score without a value.
        soft_cap: bound on the scores; None is none.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    sliding_window: int | None
    has_alibi: bool = False
    has_sinks: bool = False
    soft_cap: float | None = None

    @classmethod
    def of(cls, query: Shape, key: Shape, value: Shape, attention: Attention) -> AttentionShape:
        """Return the shape of an attention over heads of the shapes `[heads, size]`."""
        return cls(
            query[0],
            key[0],
            key[1],
            value[1],
            attention.sliding_window,
            attention.alibi_slopes is not None,
            attention.sinks is not None,
            attention.soft_cap,
        )

    @property
    def kv_size(self) -> int:
        """Numbers in the keys and values of one token."""
        return self.num_kv_heads * (self.head_dim + self.v_head_dim)

    @property
    def features(self) -> tuple[Feature, ...]:
        """What this attention needs of an engine beyond the ordinary."""
        needs = {
            Feature.ALIBI: self.has_alibi,
            Feature.ALIBI_WITH_WINDOW: self.has_alibi and self.sliding_window is not None,
            Feature.SINKS: self.has_sinks,
            Feature.SOFT_CAP: self.soft_cap is not None,
            Feature.VALUE_HEAD_DIM: self.v_head_dim != self.head_dim,
        }
        return tuple(feature for feature, needed in needs.items() if needed)


@dataclass(frozen=True)
class Outline:
    """A network, in outline.

    Args:
        weights: every tensor that is asked for, once a role.
        layers: the attention of each layer.
        layer_features: numbers that one token's way through the largest layer computes, all of them together.
        features: what the network needs of an engine beyond the ordinary.
        shares: stack of experts, by its name -> the share of them that one token has.
    """

    weights: tuple[WeightUse, ...]
    layers: tuple[AttentionShape, ...]
    layer_features: int
    features: tuple[Feature, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_tied(self) -> bool:
        """Whether the output projection is the table of embeddings."""
        tables = {use.name for use in self.weights if use.role is Role.EMBEDDING}
        return any(use.role is Role.HEAD and use.name in tables for use in self.weights)

    def size(self, *roles: Role) -> int:
        """Return how many numbers the tensors of some roles hold."""
        return sum(use.size for use in self.weights if use.role in roles)

    def active_size(self, *roles: Role) -> int:
        """Return how many of those numbers one token is computed with: of experts, its share."""
        sizes = (use.size * self.shares.get(use.name, 1.0) for use in self.weights if use.role in roles)
        return round(sum(sizes))

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
        tensors = []
        for use in self.weights:
            if use.role.split is Split.IN:
                tensors.append((f"columns of {use.name}", use.shape[-1]))
            elif use.role.split is not None:
                rows = -1 if use.role is Role.COLUMN_BIAS else 0 if use.role.split is Split.HEADS else -2
                tensors.append((f"rows of {use.name}", use.shape[rows]))
        return heads + tensors


def outline(write: Callable[[Ops[Shape], Weights], Shape]) -> Outline:
    """Write a network with shapes, and return what it consists of."""
    net, weights = _ShapeOps(), _RecordedWeights()
    write(net, weights)
    features = dict.fromkeys([*(feature for layer in net.layers for feature in layer.features), *net.features])
    return Outline(tuple(weights.uses), tuple(net.layers), net.layer_features, tuple(features), net.shares)


class _RecordedWeights:
    """`Weights` that remember what is asked for; their values are zeros that take no memory."""

    num_devices = 1

    def __init__(self) -> None:
        self.uses: dict[WeightUse, None] = {}

    def embedding(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        return self._use(source, Role.EMBEDDING, vocab_size, hidden_size)

    def positions(self, source: str | TensorPart, num_positions: int, hidden_size: int) -> Weight:
        return self._use(source, Role.POSITIONS, num_positions, hidden_size)

    def head(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        return self._use(source, Role.HEAD, vocab_size, hidden_size)

    def matrix(self, source: str | TensorPart, out_size: int, in_size: int, role: Role) -> Weight:
        return self._use(source, role, out_size, in_size)

    def stack(self, sources: Sequence[str | TensorPart], out_size: int, in_size: int, role: Role) -> Weight:
        return self._use(sources[0], role, len(sources), out_size, in_size)

    def vector(self, source: str | TensorPart, size: int, role: Role = Role.VECTOR, *, plus: float = 0.0) -> Weight:
        del plus
        return self._use(source, role, size)

    def stacked_vector(self, sources: Sequence[str | TensorPart], size: int, role: Role = Role.VECTOR) -> Weight:
        return self._use(sources[0], role, len(sources), size)

    def constant(self, name: str, values: npt.NDArray[np.float32], role: Role = Role.VECTOR) -> Weight:
        del role
        return Weight(name, FP32, values.shape, values)

    def skip(self, *endings: str) -> None:
        pass

    def skip_module(self, name: str) -> None:
        pass

    def _use(self, source: str | TensorPart, role: Role, *shape: int) -> Weight:
        name = source if isinstance(source, str) else source.full_name
        self.uses[WeightUse(name, role, shape)] = None
        return Weight(name, FP32, shape, np.broadcast_to(np.float32(0), shape))


class _ShapeOps:
    """`Ops` on shapes of one token: `[features]`, or `[heads, head_dim]`."""

    def __init__(self) -> None:
        self.layers: list[AttentionShape] = []
        self.features: list[Feature] = []
        self.shares: dict[str, float] = {}
        #: Numbers computed before the first attention, between attentions, and after the last.
        self._computed_between: list[int] = [0]
        self._is_layer = True

    def embedding(self, table: Weight) -> Shape:
        return table.shape[1:]

    def position_embedding(self, table: Weight, offset: int = 0) -> Shape:
        del offset
        return table.shape[1:]

    def linear(self, x: Shape, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Shape:
        del all_reduce
        assert x == weight.shape[1:], f"{weight.name}: {weight.shape} cannot multiply {x}"
        assert bias is None or bias.shape == weight.shape[:1]
        return self._computed(weight.shape[:1])

    def head_linear(self, x: Shape, weight: Weight) -> Shape:
        num_heads, out_size, in_size = weight.shape
        assert x == (num_heads, in_size), f"{weight.name}: {weight.shape} cannot multiply {x}"
        self.features.append(Feature.HEAD_MATRICES)
        return self._computed((num_heads, out_size))

    def all_gather(self, x: Shape) -> Shape:
        return x

    def rms_norm(self, x: Shape, scale: Weight | None, epsilon: float, *, all_reduce: bool = False) -> Shape:
        del epsilon, all_reduce
        return self._normed(x, scale)

    def layer_norm(self, x: Shape, scale: Weight | None, bias: Weight | None, epsilon: float) -> Shape:
        del epsilon
        return self._normed(x, scale, bias)

    def split_heads(self, x: Shape, num_heads: int) -> Shape:
        return num_heads, x[0] // num_heads

    def merge_heads(self, x: Shape) -> Shape:
        return (math.prod(x),)

    def slice(self, x: Shape, begin: int, end: int) -> Shape:
        assert 0 <= begin < end <= x[-1], f"{begin} to {end} of {x}"
        return (*x[:-1], end - begin)

    def concat(self, *parts: Shape) -> Shape:
        first = parts[0]
        assert all(part[:-1] == first[:-1] for part in parts)
        return self._computed((*first[:-1], sum(part[-1] for part in parts)))

    def apply_rotary(self, x: Shape, rotary: Rotary) -> Shape:
        assert rotary.rotated <= x[1], "a part of each head is rotated, at most the whole"
        return self._computed(x)

    def attention(self, layer: int, query: Shape, key: Shape, value: Shape, attention: Attention) -> Shape:
        assert layer == len(self.layers), "layers are written in order, each once"
        assert key[0] == value[0]
        assert query[1] == key[1]
        for each in (attention.alibi_slopes, attention.sinks):
            assert each is None or each.shape == query[:1]
        self.layers.append(AttentionShape.of(query, key, value, attention))
        self._computed_between.append(0)
        return self._computed((query[0] * value[1],))

    def activation(self, x: Shape, kind: Activation) -> Shape:
        del kind
        return self._computed(x)

    def clamp(self, x: Shape, low: float | None, high: float | None) -> Shape:
        del low, high
        return self._computed(x)

    def multiply(self, a: Shape, b: Shape) -> Shape:
        assert a == b or (b == (1,) and len(a) == 1)
        return self._computed(a)

    def multiply_number(self, x: Shape, number: float) -> Shape:
        del number
        return self._computed(x)

    def add(self, a: Shape, b: Shape) -> Shape:
        assert a == b
        return self._computed(a)

    def add_number(self, x: Shape, number: float) -> Shape:
        del number
        return self._computed(x)

    def experts(self, x: Shape, logits: Shape, routing: Routing, experts: Experts, gating: Gating[Shape]) -> Shape:
        inner = experts.gate.shape[1]
        assert logits == (routing.num_experts,)
        assert experts.gate.shape == experts.up.shape == (routing.num_experts, inner, *x)
        assert experts.down.shape == (routing.num_experts, *x, inner)
        self.features.append(Feature.EXPERTS)
        for stack in (experts.gate, experts.up, experts.down):
            self.shares[stack.name] = routing.num_chosen / routing.num_experts
        # Each chosen expert has a gate, an up projection, what comes of them, and its output.
        self._computed((routing.num_chosen * (2 * inner + x[0]),))
        gating((inner,), (inner,))
        return self._computed(x)

    def select_rows(self, x: Shape) -> Shape:
        self._is_layer = False
        return x

    @property
    def layer_features(self) -> int:
        """Numbers that the largest layer computes of one token."""
        first, *between, last = self._computed_between
        # What precedes the first attention and what follows the last are two parts of a layer.
        return max([first + last, *between])

    def _normed(self, x: Shape, *vectors: Weight | None) -> Shape:
        for each in vectors:
            assert each is None or each.shape in (x[-1:], (math.prod(x),), x), f"{each.name}: {each.shape} for {x}"
        return self._computed(x)

    def _computed(self, shape: Shape) -> Shape:
        if self._is_layer:
            self._computed_between[-1] += math.prod(shape)
        return shape
