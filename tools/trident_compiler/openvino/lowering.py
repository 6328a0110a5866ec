"""The network language in OpenVINO, for one device.

Owns how each operation of `Ops` becomes OpenVINO operations, in the very patterns that its CPU plugin fuses (RoPE,
LLMMLP, RMS, compressed FullyConnected), and the network's inputs. Knows nothing of models, and never compiles or writes
anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as ops

from trident_backend.engine.openvino import attention as openvino_attention
from trident_backend.engine.openvino import names
from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.families.words import Activation, Attention, Experts, Gating, Routing
from trident_compiler.openvino import experts as openvino_experts
from trident_compiler.openvino.routing import route
from trident_compiler.weights import formats
from trident_compiler.weights.weights import Weight

Node = Any  # openvino's Python classes come without usable types
_OPENVINO_TYPES = {
    formats.BF16: ov.Type.bf16,
    formats.FP16: ov.Type.f16,
    formats.FP32: ov.Type.f32,
    formats.INT8: ov.Type.i8,
}


@dataclass(frozen=True)
class Network:
    """An `openvino.Model` and the arrays whose memory its constants share."""

    model: Any
    memory: tuple[npt.NDArray[Any], ...]


class OpenVINOLowering:
    """Builds one `openvino.Model`. A value is a node.

    Wide values are `[T, 1, features]` and heads are `[T, heads, 1, head_dim]`: the shapes that the fusions ask for.
    """

    def __init__(self) -> None:
        self._inputs: dict[str, Node] = {}
        self._placeholders: list[openvino_attention.AttentionPlaceholder] = []
        self._memory: list[npt.NDArray[Any]] = []
        self._constants: dict[str, Node] = {}
        self._rotations: dict[tuple[bytes, float], tuple[Node, Node]] = {}
        self._token_ids = self._input(names.TOKEN_IDS, [-1])
        self._position_ids = self._input(names.POSITION_IDS, [-1])
        self._logit_rows = self._input(names.LOGIT_ROWS, [-1])

    def network(self, logits: Node, vocab_size: int) -> Network:
        """Return the finished network; its output is `logits`, f32 `[R, vocab]`."""
        flat = ops.reshape(logits, _ints([-1, vocab_size]), special_zero=False)
        flat.output(0).get_tensor().set_names({names.LOGITS})
        results = [ops.result(flat), *(result for each in self._placeholders for result in each.results)]
        inputs = [*self._inputs.values(), *(each.output for each in self._placeholders)]
        model = ov.Model(results, inputs, "trident")
        openvino_attention.describe(model, self._placeholders)
        return Network(model, tuple(self._memory))

    def embedding(self, table: Weight) -> Node:
        rows = _gather(self._stored(table), self._token_ids)
        hidden = ops.convert(rows, ov.Type.f32)
        if table.scales is not None:
            hidden = ops.multiply(hidden, _gather(self._scales(table), self._token_ids))
        return ops.unsqueeze(hidden, _ints([1]))

    def position_embedding(self, table: Weight, offset: int = 0) -> Node:
        positions = ops.add(self._position_ids, _ints([offset])) if offset else self._position_ids
        return ops.unsqueeze(ops.convert(_gather(self._stored(table), positions), ov.Type.f32), _ints([1]))

    def linear(self, x: Node, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Node:
        del all_reduce  # there is one device
        product = ops.matmul(x, self._matrix(weight), transpose_a=False, transpose_b=True)
        return product if bias is None else ops.add(product, self._vector(bias))

    def all_gather(self, x: Node) -> Node:
        return x

    def head_linear(self, x: Node, weight: Weight) -> Node:
        # [T, heads, 1, in] times [heads, in, out].
        return ops.matmul(x, self._matrix(weight), transpose_a=False, transpose_b=True)

    def rms_norm(self, x: Node, scale: Weight | None, epsilon: float, *, all_reduce: bool = False) -> Node:
        del all_reduce  # there is one device
        mean = ops.reduce_mean(ops.power(x, _float(2)), _ints([-1]), keep_dims=True)
        inverse = ops.divide(_float(1), ops.sqrt(ops.add(mean, _float(epsilon))))
        normed = ops.multiply(x, inverse)
        return normed if scale is None else ops.multiply(normed, self._over_last(scale, x))

    def layer_norm(self, x: Node, scale: Weight | None, bias: Weight | None, epsilon: float) -> Node:
        normed = ops.mvn(x, _ints([-1]), True, epsilon, "inside_sqrt")
        scaled = normed if scale is None else ops.multiply(normed, self._over_last(scale, x))
        return scaled if bias is None else ops.add(scaled, self._over_last(bias, x))

    def split_heads(self, x: Node, num_heads: int) -> Node:
        head_dim = _size(x, 2) // num_heads
        return ops.reshape(x, _ints([-1, num_heads, 1, head_dim]), special_zero=False)

    def merge_heads(self, x: Node) -> Node:
        return ops.reshape(x, _ints([-1, 1, _size(x, 1) * _size(x, 3)]), special_zero=False)

    def slice(self, x: Node, begin: int, end: int) -> Node:
        return ops.slice(x, _ints([begin]), _ints([end]), _ints([1]), _ints([-1]))

    def concat(self, *parts: Node) -> Node:
        return ops.concat(list(parts), -1)

    def apply_rotary(self, x: Node, rotary: Rotary) -> Node:
        cosine, sine = self._rotation(rotary)
        head_dim, rotated = _size(x, 3), rotary.rotated
        first = x if rotated == head_dim else self.slice(x, 0, rotated)
        low = ops.slice(first, _ints([0]), _ints([rotated // 2]), _ints([1]), _ints([3]))
        high = ops.slice(first, _ints([rotated // 2]), _ints([2**31 - 1]), _ints([1]), _ints([3]))
        turned = ops.concat([ops.multiply(high, _float(-1)), low], -1)
        result = ops.add(ops.multiply(first, cosine), ops.multiply(turned, sine))
        return result if rotated == head_dim else ops.concat([result, self.slice(x, rotated, head_dim)], 3)

    def attention(self, layer: int, query: Node, key: Node, value: Node, attention: Attention) -> Node:
        assert attention.soft_cap is None, "refused beforehand"
        num_heads, num_kv_heads = _size(query, 1), _size(key, 1)
        head_dim, v_head_dim = _size(key, 3), _size(value, 3)
        assert layer == len(self._placeholders), "layers are written in order, each once"
        placeholder = openvino_attention.cut(
            layer,
            ops.reshape(query, _ints([-1, num_heads * head_dim]), special_zero=False),
            ops.reshape(key, _ints([-1, num_kv_heads * head_dim]), special_zero=False),
            ops.reshape(value, _ints([-1, num_kv_heads * v_head_dim]), special_zero=False),
            openvino_attention.LayerAttention(
                num_heads,
                num_kv_heads,
                head_dim,
                v_head_dim,
                attention.scale,
                attention.sliding_window or 0,
                _numbers(attention.alibi_slopes),
                _numbers(attention.sinks),
            ),
        )
        self._placeholders.append(placeholder)
        return ops.reshape(placeholder.output, _ints([-1, 1, num_heads * v_head_dim]), special_zero=False)

    def activation(self, x: Node, kind: Activation) -> Node:
        if kind is Activation.SILU:
            return ops.multiply(x, ops.sigmoid(x))
        if kind is Activation.RELU_SQUARED:
            return ops.power(ops.relu(x), _float(2))
        if kind in (Activation.GELU, Activation.GELU_TANH):
            return ops.gelu(x, "erf" if kind is Activation.GELU else "tanh")
        return {Activation.RELU: ops.relu, Activation.SIGMOID: ops.sigmoid, Activation.TANH: ops.tanh}[kind](x)

    def clamp(self, x: Node, low: float | None, high: float | None) -> Node:
        if low is not None and high is not None:
            return ops.clamp(x, low, high)
        most = x if high is None else ops.minimum(x, _float(high))
        return most if low is None else ops.maximum(most, _float(low))

    def multiply(self, a: Node, b: Node) -> Node:
        return ops.multiply(a, b)

    def multiply_number(self, x: Node, number: float) -> Node:
        return ops.multiply(x, _float(number))

    def add(self, a: Node, b: Node) -> Node:
        return ops.add(a, b)

    def add_number(self, x: Node, number: float) -> Node:
        return ops.add(x, _float(number))

    def experts(self, x: Node, logits: Node, routing: Routing, experts: Experts, gating: Gating[Node]) -> Node:
        weights = openvino_experts.ExpertWeights(self._matrix, self._vector)
        return openvino_experts.mixture(x, route(logits, routing, self._vector), experts, gating, weights)

    def select_rows(self, x: Node) -> Node:
        return _gather(x, self._logit_rows)

    def _input(self, name: str, shape: list[int]) -> Node:
        parameter = ops.parameter(shape, ov.Type.i32, name)
        parameter.output(0).get_tensor().set_names({name})
        self._inputs[name] = parameter
        return parameter

    def _rotation(self, rotary: Rotary) -> tuple[Node, Node]:
        key = rotary.inverse_frequencies.tobytes(), rotary.factor
        if key not in self._rotations:
            positions = ops.reshape(self._position_ids, _ints([-1, 1, 1, 1]), special_zero=False)
            angles = ops.multiply(
                ops.convert(positions, ov.Type.f32), _constant(rotary.inverse_frequencies.reshape(1, 1, 1, -1))
            )
            both = ops.concat([angles, angles], 3)
            tables = ops.cos(both), ops.sin(both)
            if rotary.factor != 1:
                tables = (
                    self.multiply_number(tables[0], rotary.factor),
                    self.multiply_number(tables[1], rotary.factor),
                )
            self._rotations[key] = tables
        return self._rotations[key]

    def _over_last(self, weight: Weight, x: Node) -> Node:
        """A vector of the last axis of x, or one with other numbers for each head of `[T, heads, 1, head_dim]`."""
        vector = self._vector(weight)
        if len(x.output(0).get_partial_shape()) == 3 or weight.shape == (_size(x, 3),):
            return vector
        return ops.reshape(vector, _ints([1, _size(x, 1), 1, _size(x, 3)]), special_zero=False)

    def _stored(self, weight: Weight) -> Node:
        """The constant of a weight as it is stored; one for all its uses."""
        if weight.name not in self._constants:
            constant = self._shared(weight.values, list(weight.shape), _OPENVINO_TYPES[weight.format])
            constant.set_friendly_name(weight.name)
            self._constants[weight.name] = constant
        return self._constants[weight.name]

    def _shared(self, values: npt.NDArray[Any], shape: list[int], kind: Node) -> Node:
        """A constant over the array's own memory, which must therefore live as long as the network."""
        self._memory.append(values)
        return ops.constant(ov.Tensor(values, ov.Shape(shape), kind), shared_memory=True)

    def _scales(self, weight: Weight) -> Node:
        assert weight.scales is not None
        return _constant(weight.scales)

    def _vector(self, weight: Weight) -> Node:
        assert weight.format == formats.FP32
        return self._stored(weight)

    def _matrix(self, weight: Weight) -> Node:
        """A matrix as the plugin recognises it: stored values behind the operations that decompress them."""
        if weight.format == formats.INT4:
            return self._int4_matrix(weight)
        stored = self._stored(weight)
        if weight.format == formats.FP32:
            return stored
        if weight.format == formats.INT8:
            return ops.multiply(ops.convert(stored, ov.Type.f32), self._scales(weight))
        return ops.convert(stored, ov.Type.f32)

    def _int4_matrix(self, weight: Weight) -> Node:
        assert weight.scales is not None
        assert weight.zero_points is not None
        *outer, in_size = weight.shape
        num_groups = weight.scales.shape[-1]
        values = self._shared(weight.values, [*outer, num_groups, in_size // num_groups], ov.Type.u4)
        zeros = weight.zero_points.reshape(-1)
        zeros = np.append(zeros, np.zeros(zeros.size % 2, np.uint8))
        zero_points = self._shared(zeros[0::2] | zeros[1::2] << 4, [*outer, num_groups, 1], ov.Type.u4)
        centred = ops.subtract(ops.convert(values, ov.Type.f16), ops.convert(zero_points, ov.Type.f16))
        scaled = ops.multiply(centred, _constant(weight.scales[..., None].astype(np.float16)))
        return ops.convert(ops.reshape(scaled, _ints(list(weight.shape)), special_zero=False), ov.Type.f32)


def _size(node: Node, axis: int) -> int:
    return int(node.output(0).get_partial_shape()[axis].get_length())


def _numbers(weight: Weight | None) -> tuple[float, ...]:
    return () if weight is None else tuple(weight.values.tolist())


def _gather(table: Node, rows: Node) -> Node:
    return ops.gather(table, rows, _constant(np.array(0, np.int32)))


def _constant(values: npt.NDArray[Any]) -> Node:
    return ops.constant(values)


def _ints(values: list[int]) -> Node:
    return ops.constant(np.array(values, np.int32))


def _float(value: float) -> Node:
    return ops.constant(np.array(value, np.float32))
