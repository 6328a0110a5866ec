"""A mixture of experts in TensorRT's network API.

Owns how stacked weights are multiplied and outputs summed. Every expert is computed for every token, and those that a
token has not chosen count nothing: a network is one for calls of one token and of thousands, and its shapes must not
depend on a choice. Never makes a choice.
"""

from __future__ import annotations

from trident_compiler.families.words import Experts, Gating, Routing
from trident_compiler.tensorrt.collectives import TensorRTCollectives
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.tensorrt.matmul import TensorRTMatmul
from trident_compiler.tensorrt.routing import expert_weights
from trident_compiler.weights.weights import Weight


class TensorRTExperts:
    """The mixtures of one network.

    Args:
        layers: of the network.
        matmul: its weights.
        collectives: of the devices that share the experts' inner features.
    """

    def __init__(self, layers: TensorRTLayers, matmul: TensorRTMatmul, collectives: TensorRTCollectives) -> None:
        self._layers = layers
        self._matmul = matmul
        self._collectives = collectives

    def mix(self, x: Tensor, logits: Tensor, routing: Routing, experts: Experts, gating: Gating[Tensor]) -> Tensor:
        """Return the weighted sum of chosen experts' outputs, `[T, hidden]`, as `Ops.experts`."""
        layers, exact = self._layers, self._layers.trt.float32
        weights = expert_weights(layers, logits, routing)
        each = layers.reshape(x, 1, -1, x.shape[1])
        gate, up = (
            self._projected(each, weight, bias)
            for weight, bias in ((experts.gate, experts.gate_bias), (experts.up, experts.up_bias))
        )
        outputs = layers.cast(self._matmul.matmul(gating(gate, up), experts.down), exact)
        # [T, experts] to [experts, T, 1].
        shares = layers.reshape(layers.transpose(weights, 1, 0), 0, -1, 1)
        # What a token has not chosen may be infinite for it.
        is_chosen = layers.elementwise("GREATER", shares, layers.number(0, 3))
        shared = layers.select(is_chosen, layers.elementwise("PROD", outputs, shares), layers.number(0, 3))
        total = self._collectives.all_reduce(layers.cast(layers.reduce("SUM", shared, 0), x.dtype))
        if experts.down_bias is None:
            return total
        biases = layers.matmul(weights, layers.constant(experts.down_bias.values))
        return layers.elementwise("SUM", total, layers.cast(biases, x.dtype))

    def _projected(self, x: Tensor, weight: Weight, bias: Weight | None) -> Tensor:
        """`x [1, T, in]` by each member of `weight [experts, out, in]`: `[experts, T, out]`."""
        product = self._matmul.matmul(x, weight)
        if bias is None:
            return product
        num_experts, width = bias.shape
        each = self._layers.constant(bias.values.reshape(num_experts, 1, width))
        return self._layers.elementwise("SUM", product, self._layers.cast(each, product.dtype))
