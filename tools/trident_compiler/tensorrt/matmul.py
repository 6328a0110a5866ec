"""Matrix multiplication with weights in TensorRT's network API, in every format of weights.

Owns how a weight is stored in the network and how it becomes numbers again. Never knows what is multiplied.
"""

from __future__ import annotations

import math

import numpy as np

from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.weights import formats
from trident_compiler.weights.quantization import E4M3_MAX
from trident_compiler.weights.weights import Weight


class TensorRTMatmul:
    """Weights of one network, each stored once.

    Args:
        layers: of the network.
        compute: format of activations: fp16, bf16, or fp32.
    """

    def __init__(self, layers: TensorRTLayers, compute: str) -> None:
        trt = layers.trt
        self._types = {
            formats.FP32: trt.float32,
            formats.FP16: trt.float16,
            formats.BF16: trt.bfloat16,
            formats.INT8: trt.int8,
            formats.INT4: trt.int4,
            formats.FP8: trt.fp8,
        }
        self.compute = self._types[compute]
        self._layers = layers
        self._constants: dict[str, Tensor] = {}

    def stored(self, weight: Weight) -> Tensor:
        """Return the weight as it is stored, one constant for all its uses; of a stack that is quantized, its rows."""
        if weight.name not in self._constants:
            # A scale is for one row, or one block of one, and TensorRT knows no rows of several matrices.
            shape = weight.shape if weight.scales is None else (math.prod(weight.shape[:-1]), weight.shape[-1])
            self._constants[weight.name] = self._layers.packed_constant(
                weight.values, self._types[weight.format], shape, weight.name
            )
        return self._constants[weight.name]

    def vector(self, weight: Weight, rank: int) -> Tensor:
        """Return a vector that broadcasts over all but the last of `rank` axes."""
        assert weight.format == formats.FP32
        shape = (1,) * (rank - 1) + weight.shape
        return self._layers.cast(self._layers.constant(weight.values.reshape(shape)), self.compute)

    def matmul(self, x: Tensor, weight: Weight) -> Tensor:
        """Return `x @ weight.T` of `x [T, in]` and `weight [out, in]`, `[T, out]`, or the same of each of a stack.

        A stack of n is `[n, out, in]`; x is `[n, T, in]`, or `[1, T, in]` for all.
        """
        return self._float8_matmul(x, weight) if weight.format == formats.FP8 else self._plain_matmul(x, weight)

    def _plain_matmul(self, x: Tensor, weight: Weight) -> Tensor:
        return self._layers.matmul(x, self._matrix(weight), transposed=True)

    def _float8_matmul(self, x: Tensor, weight: Weight) -> Tensor:
        """Multiply in float8: scale each row of x to the format's whole range and the product back.

        So no scale of activations must be known beforehand.
        """
        layers, trt, rank = self._layers, self._layers.trt, len(x.shape)
        exact = layers.cast(x, trt.float32)
        largest = layers.reduce("MAX", layers.unary("ABS", exact), rank - 1, keep=True)
        above_zero = layers.elementwise("MAX", largest, layers.number(1e-12, rank))
        scale = layers.elementwise("PROD", above_zero, layers.number(1 / E4M3_MAX, rank))
        scaled = layers.cast(layers.elementwise("DIV", exact, scale), self.compute)
        one = layers.cast(layers.constant(np.ones((), np.float32)), self.compute)
        rounded = layers.network.add_quantize(scaled, one, trt.fp8).get_output(0)
        product = self._plain_matmul(layers.network.add_dequantize(rounded, one, self.compute).get_output(0), weight)
        return layers.cast(layers.elementwise("PROD", layers.cast(product, trt.float32), scale), self.compute)

    def _matrix(self, weight: Weight) -> Tensor:
        stored = self.stored(weight)
        if weight.scales is None:
            return self._layers.cast(stored, self.compute)
        # One scale for each output channel, or for each block of a row: TensorRT infers the blocks from the shape.
        per_channel = weight.scales.shape[-1] == 1
        scales = weight.scales.reshape(-1) if per_channel else weight.scales.reshape(-1, weight.scales.shape[-1])
        kept = self._layers.cast(self._layers.constant(scales), self.compute)
        layer = self._layers.network.add_dequantize(stored, kept, self.compute)
        if per_channel:
            layer.axis = 0
        matrix = layer.get_output(0)
        return matrix if len(weight.shape) == 2 else self._layers.reshape(matrix, *weight.shape)
