"""The words of the network language that need one token and no matrix, in TensorRT: functions of numbers, and norms.

Owns how each becomes layers. What is of single precision inside, as norms are, is rounded once at its end. Never knows
a weight's format, or what values mean.
"""

from __future__ import annotations

from typing import Any

from trident_compiler.families.words import Activation
from trident_compiler.tensorrt.collectives import TensorRTCollectives
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.weights.weights import Weight

_ACTIVATIONS = {
    Activation.GELU: "GELU_ERF",
    Activation.GELU_TANH: "GELU_TANH",
    Activation.RELU: "RELU",
    Activation.SIGMOID: "SIGMOID",
    Activation.TANH: "TANH",
}


class TensorRTPointwise:
    """Pointwise words and norms of one network.

    Args:
        layers: of the network.
        compute: TensorRT's type of activations.
        collectives: of the devices that share the network.
    """

    def __init__(self, layers: TensorRTLayers, compute: Any, collectives: TensorRTCollectives) -> None:
        self._layers = layers
        self._compute = compute
        self._collectives = collectives

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        if kind is Activation.SILU:
            return self.multiply(x, self._layers.activation("SIGMOID", x))
        if kind is Activation.RELU_SQUARED:
            positive = self._layers.activation("RELU", x)
            return self.multiply(positive, positive)
        return self._layers.activation(_ACTIVATIONS[kind], x)

    def clamp(self, x: Tensor, low: float | None, high: float | None) -> Tensor:
        for operation, bound in (("MIN", high), ("MAX", low)):
            if bound is not None:
                number = self._layers.cast(self._layers.number(bound, len(x.shape)), x.dtype)
                x = self._layers.elementwise(operation, x, number)
        return x

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return self._layers.elementwise("PROD", a, b)

    def multiply_number(self, x: Tensor, number: float) -> Tensor:
        return self._with_number("PROD", x, number)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._layers.elementwise("SUM", a, b)

    def add_number(self, x: Tensor, number: float) -> Tensor:
        return self._with_number("SUM", x, number)

    def rms_norm(self, x: Tensor, scale: Weight | None, epsilon: float, *, all_reduce: bool = False) -> Tensor:
        exact = self._exact(x)
        square = self._mean(self.multiply(exact, exact))
        if all_reduce:
            square = self._collectives.all_average(square)
        normed = self._layers.cast(self._over_root(exact, square, epsilon), self._compute)
        return normed if scale is None else self.multiply(normed, self._layers.cast(self._over(scale, x), normed.dtype))

    def layer_norm(self, x: Tensor, scale: Weight | None, bias: Weight | None, epsilon: float) -> Tensor:
        exact = self._exact(x)
        centred = self._layers.elementwise("SUB", exact, self._mean(exact))
        normed = self._over_root(centred, self._mean(self.multiply(centred, centred)), epsilon)
        if scale is not None:
            normed = self.multiply(normed, self._over(scale, x))
        if bias is not None:
            normed = self.add(normed, self._over(bias, x))
        return self._layers.cast(normed, self._compute)

    def _over_root(self, exact: Tensor, square: Tensor, epsilon: float) -> Tensor:
        root = self._layers.unary("SQRT", self.add(square, self._layers.number(epsilon, len(exact.shape))))
        return self._layers.elementwise("DIV", exact, root)

    def _mean(self, exact: Tensor) -> Tensor:
        return self._layers.reduce("AVG", exact, len(exact.shape) - 1, keep=True)

    def _exact(self, x: Tensor) -> Tensor:
        return self._layers.cast(x, self._layers.trt.float32)

    def _over(self, vector: Weight, x: Tensor) -> Tensor:
        """A vector of the last axis of x, or one with other numbers for each head of `[T, heads, 1, head_dim]`."""
        num_numbers, width = vector.values.size, x.shape[-1]
        shape = [1] * len(x.shape)
        shape[-1] = width
        if num_numbers != width:
            shape[1] = num_numbers // width
        return self._layers.constant(vector.values.reshape(shape))

    def _with_number(self, operation: str, x: Tensor, number: float) -> Tensor:
        """As PyTorch does it: the number is not rounded to the type of activations."""
        result = self._layers.elementwise(operation, self._exact(x), self._layers.number(number, len(x.shape)))
        return self._layers.cast(result, x.dtype)
