"""The network language in TensorRT's network API, of TensorRT and of TensorRT-RTX alike.

Owns which layers stand for each operation of `Ops`, with the modules beside it that own attention, experts, products
and what is pointwise. No plugins: attention, rotary embedding and the KV cache are native layers. Knows nothing of
models, and never compiles or writes anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trident_backend.engine.tensorrt import names
from trident_compiler.checkpoint.rope import Rotary
from trident_compiler.families.words import Attention, Experts, Gating, Routing
from trident_compiler.tensorrt.attention import TensorRTAttention
from trident_compiler.tensorrt.collectives import TensorRTCollectives
from trident_compiler.tensorrt.experts import TensorRTExperts
from trident_compiler.tensorrt.inputs import StepInputs
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.tensorrt.matmul import TensorRTMatmul
from trident_compiler.tensorrt.pointwise import TensorRTPointwise
from trident_compiler.weights.weights import Weight


class TensorRTLowering(TensorRTPointwise):
    """Writes one strongly typed network. A value is an `ITensor`.

    Wide values are `[T, features]` and heads `[T, heads, 1, head_dim]`, with T = B * Q: B sequences of Q tokens each.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        network: an empty `INetworkDefinition`.
        compute: format of activations and of the KV cache: fp16, bf16, or fp32.
        slot_len: positions in a slot of the KV cache.
        num_ranks: devices that share the network.
        by_lengths: attention is told how many positions of a slot are in use, and may leave out the others. There are
            kernels that read them all the same (NVIDIA/TensorRT-Model-Connect, pull requests 1035 and 1048), so that
            else a mask says of every position whether it is seen.
    """

    def __init__(
        self, trt: Any, network: Any, compute: str, slot_len: int, num_ranks: int = 1, *, by_lengths: bool = False
    ) -> None:
        layers = TensorRTLayers(trt, network)
        self._matmul = TensorRTMatmul(layers, compute)
        super().__init__(layers, self._matmul.compute, TensorRTCollectives(layers, num_ranks))
        self._slot_len = slot_len
        self._inputs = StepInputs(layers)
        self._attention = TensorRTAttention(layers, self._inputs, self._compute, slot_len, by_lengths=by_lengths)
        self._experts = TensorRTExperts(layers, self._matmul, self._collectives)
        self._tables: dict[tuple[bytes, float], tuple[Tensor, Tensor]] = {}
        self._positions = layers.reshape(self._inputs.position_ids, -1, 1)

    def finish(self, logits: Tensor) -> None:
        """Make `logits [R, vocab]` the network's output, in float32."""
        self._layers.output(names.LOGITS, self._layers.cast(logits, self._layers.trt.float32))

    def embedding(self, table: Weight) -> Tensor:
        return self._rows(table, self._layers.reshape(self._inputs.token_ids, -1))

    def position_embedding(self, table: Weight, offset: int = 0) -> Tensor:
        positions = self._layers.reshape(self._inputs.position_ids, -1)
        if offset:
            shift = self._layers.constant(np.full(1, offset, np.int32))
            positions = self._layers.elementwise("SUM", positions, shift)
        return self._rows(table, positions)

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None = None, *, all_reduce: bool = False) -> Tensor:
        product = self._matmul.matmul(x, weight)
        if all_reduce:
            product = self._collectives.all_reduce(product)
        return product if bias is None else self.add(product, self._matmul.vector(bias, 2))

    def head_linear(self, x: Tensor, weight: Weight) -> Tensor:
        # [T, heads, 1, in] to [heads, T, in], and back.
        by_head = self._layers.transpose(self._layers.reshape(x, -1, x.shape[1], x.shape[3]), 1, 0, 2)
        product = self._layers.transpose(self._matmul.matmul(by_head, weight), 1, 0, 2)
        return self._layers.reshape(product, -1, x.shape[1], 1, weight.shape[1])

    def all_gather(self, x: Tensor) -> Tensor:
        return self._collectives.all_gather(x)

    def split_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return self._layers.reshape(x, -1, num_heads, 1, x.shape[1] // num_heads)

    def merge_heads(self, x: Tensor) -> Tensor:
        return self._layers.reshape(x, -1, x.shape[1] * x.shape[3])

    def slice(self, x: Tensor, begin: int, end: int) -> Tensor:
        return self._layers.slice_last(x, begin, end)

    def concat(self, *parts: Tensor) -> Tensor:
        return self._layers.concatenate(*parts, axis=len(parts[0].shape) - 1)

    def apply_rotary(self, x: Tensor, rotary: Rotary) -> Tensor:
        cosine, sine = self._rotation(rotary)
        part = 0 if rotary.rotated == x.shape[3] else rotary.rotated
        layer = self._layers.network.add_rotary_embedding(x, cosine, sine, False, part)
        layer.set_input(3, self._positions)
        return layer.get_output(0)

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        return self._attention.attend(layer, self.multiply_number(query, attention.scale), key, value, attention)

    def experts(self, x: Tensor, logits: Tensor, routing: Routing, experts: Experts, gating: Gating[Tensor]) -> Tensor:
        return self._experts.mix(x, logits, routing, experts, gating)

    def select_rows(self, x: Tensor) -> Tensor:
        return self._layers.gather(x, self._inputs.logit_rows)

    def _rows(self, table: Weight, numbers: Tensor) -> Tensor:
        return self._layers.cast(self._layers.gather(self._matmul.stored(table), numbers), self._compute)

    def _rotation(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """The tables of cosines and sines `[slot_len, rotated / 2]`."""
        frequencies, factor = rotary.inverse_frequencies, np.float32(rotary.factor)
        key = frequencies.tobytes(), rotary.factor
        if key not in self._tables:
            angles = np.arange(self._slot_len, dtype=np.float32)[:, None] * frequencies[None, :]
            cosine, sine = (self._layers.constant(part(angles) * factor) for part in (np.cos, np.sin))
            self._tables[key] = self._layers.cast(cosine, self._compute), self._layers.cast(sine, self._compute)
        return self._tables[key]
