"""Quantized numbers in networks against torch, and the range and blocks that TensorRT gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tensorrt.interpreter import evaluate
from tests.tensorrt.small_networks import KINDS, bits, constant, normal, recorded, run, trt


@pytest.mark.parametrize(("kind", "torch_kind"), KINDS)
def test_interpreter_quantization_int8_is_dequantized_by_channel(kind: Any, torch_kind: torch.dtype) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (6, 4), np.int8)
    scales = torch.from_numpy(np.abs(normal(6)) + 0.01).to(torch_kind)

    def write(net: Any) -> Any:
        layer = net.add_dequantize(constant(net, values), constant(net, bits(scales), kind), kind)
        layer.axis = 0
        return layer.get_output(0)

    expected = (torch.from_numpy(values).float() * scales.float()[:, None]).to(torch_kind)
    np.testing.assert_array_equal(evaluate(recorded(write, {}), {})["out0"], bits(expected))


def test_interpreter_quantization_int4_is_dequantized_in_blocks_that_follow_from_the_scales() -> None:
    values = np.random.default_rng(0).integers(-8, 8, (4, 64)).astype(np.int8)
    halves = values.reshape(-1, 2).astype(np.uint8) & 15
    packed = halves[:, 0] | halves[:, 1] << 4
    scales = np.abs(normal(4, 2)) + np.float32(0.01)

    def write(net: Any) -> Any:
        stored = net.add_constant(values.shape, trt.Weights(trt.int4, packed.ctypes.data, values.size)).get_output(0)
        return net.add_dequantize(stored, constant(net, scales), trt.float32).get_output(0)

    expected = values.reshape(4, 2, 32) * scales[..., None]
    np.testing.assert_array_equal(evaluate(recorded(write, {}), {})["out0"], expected.reshape(4, 64))


def test_interpreter_quantization_float8_is_quantized_and_dequantized() -> None:
    def write(net: Any, x: Any) -> Any:
        scale = constant(net, np.array(0.5, np.float32))
        quantized = net.add_quantize(x, scale, trt.fp8).get_output(0)
        return net.add_dequantize(quantized, scale, trt.float32).get_output(0)

    x = normal(50, 8) * 150
    eighths = (torch.from_numpy(x) * 2).clip(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(run(write, x=x), eighths.float().numpy() / 2)


def test_interpreter_quantization_float8_constants_are_read_from_their_bits_and_dequantized_by_channel() -> None:
    weights = torch.from_numpy(normal(3, 4)).to(torch.float8_e4m3fn)
    codes, scales = weights.view(torch.uint8).numpy(), np.array([0.5, 3.0, 2.0], np.float32)

    def write(net: Any) -> Any:
        layer = net.add_dequantize(constant(net, codes, trt.fp8), constant(net, scales), trt.float32)
        layer.axis = 0
        return layer.get_output(0)

    expected = weights.float().numpy() * scales[:, None]
    np.testing.assert_array_equal(evaluate(recorded(write, {}), {})["out0"], expected)


def test_interpreter_quantization_int8_is_quantized_as_torch_does() -> None:
    def write(net: Any, x: Any) -> Any:
        scale = constant(net, np.array(0.5, np.float32))
        quantized = net.add_quantize(x, scale, trt.int8).get_output(0)
        return net.add_dequantize(quantized, scale, trt.float32).get_output(0)

    x = np.append(normal(100) * 40, [0.25, 0.75, 1.25, 1000, -1000]).astype(np.float32)
    expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), 0.5, 0, -128, 127).numpy()
    np.testing.assert_array_equal(run(write, x=x), expected)
