"""Attention over slots of a KV cache in TensorRT: by its fused layer, and by products for what that cannot do.

Owns the caches' inputs and outputs and both forms. The fused layer takes a mask or a bias of scores; a score without a
value, a bound on scores, and values of another size than keys take products, which read whole slots and hold every
score. Never knows where queries, keys and values come from.
"""

from __future__ import annotations

from typing import Any

from trident_backend.engine.tensorrt import names
from trident_compiler.families.outline import AttentionShape
from trident_compiler.families.words import Attention
from trident_compiler.tensorrt.inputs import StepInputs
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.tensorrt.masks import TensorRTMasks
from trident_compiler.weights.weights import Weight

#: The score of a position that is not seen, in float32.
_UNSEEN = -1e30


def takes_products(layer: AttentionShape) -> bool:
    """Return whether the fused layer cannot compute an attention."""
    return layer.has_sinks or layer.soft_cap is not None or layer.v_head_dim != layer.head_dim


class TensorRTAttention:
    """Attention of all layers of one network.

    Args:
        layers: of the network.
        inputs: of the network.
        compute: TensorRT's type of activations and of the caches.
        slot_len: S, positions in a slot.
        by_lengths: as `TensorRTLowering` has it.
    """

    def __init__(
        self, layers: TensorRTLayers, inputs: StepInputs, compute: Any, slot_len: int, *, by_lengths: bool
    ) -> None:
        self._layers = layers
        self._inputs = inputs
        self._compute = compute
        self._slot_len = slot_len
        self._by_lengths = by_lengths
        self._masks = TensorRTMasks(layers, inputs, slot_len)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        """Write the step's keys and values into the layer's caches and attend over them.

        Args:
            layer: which.
            query: `[T, heads, 1, head_dim]`, multiplied by the scale already.
            key: `[T, kv_heads, 1, head_dim]`.
            value: `[T, kv_heads, 1, v_head_dim]`.
            attention: what is special.

        Returns:
            `[T, heads * v_head_dim]`.
        """
        key_cache, value_cache = names.caches(layer)
        keys, values = self._cached(key_cache, key), self._cached(value_cache, value)
        window = min(attention.sliding_window or self._slot_len, self._slot_len)
        shape = AttentionShape.of(_shape(query), _shape(key), _shape(value), attention)
        attend = self._by_products if takes_products(shape) else self._fused
        return self._inputs.by_token(attend(self._inputs.by_sequence(query), keys, values, attention, window))

    def _cached(self, name: str, update: Tensor) -> Tensor:
        """Write `update [T, kv_heads, 1, size]` into a cache, an input that is an output in the same memory."""
        network = self._layers.network
        cache = network.add_input(name, self._compute, (-1, update.shape[1], self._slot_len, update.shape[3]))
        written = network.add_kv_cache_update(
            cache, self._inputs.by_sequence(update), self._inputs.past_lens, self._layers.trt.KVCacheMode.LINEAR
        ).get_output(0)
        self._layers.output(names.updated(name), written)
        return written

    def _fused(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention, window: int) -> Tensor:
        trt, slopes = self._layers.trt, attention.alibi_slopes
        masked = not self._by_lengths or window < self._slot_len - 1 or slopes is not None
        kind = trt.CausalMaskKind.NONE if masked else trt.CausalMaskKind.LOWER_RIGHT
        fused = self._layers.network.add_attention_v2(query, keys, values, trt.AttentionNormalizationOp.SOFTMAX, kind)
        # Only single precision has no fused kernels; where a fused one is missing, the build says so.
        fused.decomposable = self._compute == trt.float32
        if slopes is not None:
            fused.mask = self._masks.additive(slopes, window, self._compute)
        elif masked:
            fused.mask = self._masks.seen(window)
        else:
            fused.key_value_lengths = self._inputs.context_lens
        return fused.get_output(0)

    def _by_products(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention, window: int) -> Tensor:
        layers, num_heads, num_kv_heads = self._layers, query.shape[1], keys.shape[1]
        # The queries that share a key head lie behind each other: [B, kv_heads, group * Q, head_dim].
        grouped = layers.reshape(query, 0, num_kv_heads, -1, query.shape[3])
        scores = layers.cast(layers.matmul(grouped, keys, transposed=True), layers.trt.float32)
        scores = layers.reshape(scores, 0, num_heads, -1, self._slot_len)
        if (cap := attention.soft_cap) is not None:
            bounded = layers.activation("TANH", layers.elementwise("PROD", scores, layers.number(1 / cap, 4)))
            scores = layers.elementwise("PROD", bounded, layers.number(cap, 4))
        if attention.alibi_slopes is not None:
            scores = layers.elementwise("SUM", scores, self._masks.distance_biases(attention.alibi_slopes))
        scores = layers.select(self._masks.seen(window), scores, layers.number(_UNSEEN, 4))
        weights = layers.cast(self._softmax(scores, attention.sinks), self._compute)
        # A weight of nothing times what an unused position holds may be NaN.
        nothing = layers.cast(layers.number(0, 4), self._compute)
        contents = layers.select(self._masks.written(), values, nothing)
        mixed = layers.matmul(layers.reshape(weights, 0, num_kv_heads, -1, self._slot_len), contents)
        return layers.reshape(mixed, 0, num_heads, -1, values.shape[3])

    def _softmax(self, scores: Tensor, sinks: Weight | None) -> Tensor:
        """Over the last axis; a sink takes its part of each head's whole."""
        layers = self._layers
        if sinks is None:
            return layers.softmax(scores)
        sink = layers.constant(sinks.values.reshape(1, -1, 1, 1))
        largest = layers.elementwise("MAX", layers.reduce("MAX", scores, 3, keep=True), sink)
        powers = layers.unary("EXP", layers.elementwise("SUB", scores, largest))
        own = layers.unary("EXP", layers.elementwise("SUB", sink, largest))
        whole = layers.elementwise("SUM", layers.reduce("SUM", powers, 3, keep=True), own)
        return layers.elementwise("DIV", powers, whole)


def _shape(heads: Tensor) -> tuple[int, ...]:
    """`[T, heads, 1, size]` of one token: `[heads, size]`."""
    _, num_heads, _, width = heads.shape
    return num_heads, width
