"""Networks as plain data: recorded, saved, loaded, folded, refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.tensorrt.interpreter import Interpreter, evaluate
from tests.tensorrt.program import Program
from tests.tensorrt.recording import record
from tests.tensorrt.small_networks import BUILDER, bits, constant, normal, recorded, trt
from trident_ensemble.contract.errors import ArtifactError, EngineError


def dense_network() -> SimpleNamespace:
    """A network with a quantized weight, and what it computes."""
    values = np.random.default_rng(0).integers(-128, 128, (6, 4), np.int8)

    def write(net: Any, x: Any) -> Any:
        scales = constant(net, np.full(6, 0.5, np.float32))
        layer = net.add_dequantize(constant(net, values), scales, trt.float32)
        layer.axis = 0
        none, transpose = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
        return net.add_matrix_multiply(x, none, layer.get_output(0), transpose).get_output(0)

    return SimpleNamespace(program=recorded(write, {"x": (trt.float32, (-1, 4))}), weights=values * np.float32(0.5))


def test_recording_one_interpreter_takes_any_size_and_folds_constants_once() -> None:
    dense = dense_network()
    interpreter = Interpreter(dense.program)
    assert [prepared.step.operation for prepared in interpreter._steps] == ["MATRIX_MULTIPLY"]
    assert [array.dtype for array in interpreter._constants.values()] == [np.float32]
    for rows in (1, 5, 2):
        x, target = normal(rows, 4, seed=rows), np.full((rows, 6), np.nan, np.float32)
        assert interpreter.evaluate({"x": x}, {"out0": target})["out0"] is target
        np.testing.assert_allclose(target, x @ dense.weights.T, rtol=1e-6)


def test_recording_a_saved_network_is_the_same_network() -> None:
    blob = dense_network().program.save()
    loaded = Program.load(blob)
    assert loaded.save() == blob
    assert b"pickle" not in blob
    with pytest.raises(ArtifactError, match="not a recorded network"):
        Program.load(b"ftrt" + blob)
    with pytest.raises(ArtifactError, match="damaged"):
        Program.load(blob[: len(blob) // 2])


def test_recording_wrong_inputs_are_named() -> None:
    program = dense_network().program
    for inputs, words in (
        ({}, "input x is missing"),
        ({"x": np.zeros((1, 5), np.float32)}, r"input x is of shape \(1, 5\)"),
        ({"x": np.zeros((1, 4), np.float16)}, "input x is float16"),
    ):
        with pytest.raises(EngineError, match=words):
            evaluate(program, inputs)
    with pytest.raises(EngineError, match="output out0"):
        evaluate(program, {"x": np.zeros((1, 4), np.float32)}, {"out0": np.zeros((2, 6), np.float32)})


def test_recording_unknown_layers_are_named() -> None:
    def write(net: Any, x: Any) -> Any:
        layer = net.add_pooling_nd(x, trt.PoolingType.MAX, (2, 2))
        layer.name = "the pool"
        return layer.get_output(0)

    with pytest.raises(EngineError, match="'the pool' is a POOLING"):
        recorded(write, {"x": (trt.float32, (1, 1, 4, 4))})


def test_recording_constants_that_tensorrt_does_not_give_back_come_from_a_registry() -> None:
    weights = torch.from_numpy(normal(3, 4)).bfloat16()
    memory = bits(weights)
    real = BUILDER.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layer = real.add_constant((3, 4), trt.Weights(trt.bfloat16, memory.ctypes.data, 12))
    layer.name = "model.weight"
    output = real.add_cast(layer.get_output(0), trt.float32).get_output(0)
    real.mark_output(output)
    with pytest.raises(EngineError, match=r"'model.weight' is BF16"):
        record(trt, real)
    program = record(trt, real, {"model.weight": memory})
    np.testing.assert_array_equal(evaluate(program, {})[output.name], weights.float().numpy())
