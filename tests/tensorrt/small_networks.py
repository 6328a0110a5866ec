"""Small networks for tests of the interpreter, written with TensorRT's own API, and how to compare them with torch.

Owns writing, recording, saving and loading them. Tests that import it are skipped where no TensorRT is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.tensorrt.interpreter import evaluate
from tests.tensorrt.number_formats import Array, decode
from tests.tensorrt.program import Program
from tests.tensorrt.recording import RecordingModule, RecordingNetwork, record

trt: Any = RecordingModule(pytest.importorskip("tensorrt_rtx_bindings"))
LOGGER = trt.Logger(trt.Logger.ERROR)
BUILDER = trt.Builder(LOGGER)
#: TensorRT's format, torch's, and how far apart two orders of summing may be.
FLOATS = [
    pytest.param(trt.float32, torch.float32, 1e-5, id="fp32"),
    pytest.param(trt.float16, torch.float16, 2e-3, id="fp16"),
    pytest.param(trt.bfloat16, torch.bfloat16, 1.6e-2, id="bf16"),
]
KINDS = [pytest.param(*parameters.values[:2], id=parameters.id) for parameters in FLOATS]
Write = Callable[..., Any]


def new_network() -> RecordingNetwork:
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return RecordingNetwork(BUILDER.create_network(flags))


def constant(net: Any, values: Array, kind: Any = None) -> Any:
    """A constant; `kind` where numpy has no such format."""
    values = np.asarray(values, order="C")
    if kind is None:
        return net.add_constant(values.shape, values).get_output(0)
    weights = trt.Weights(kind, values.ctypes.data, values.size)
    return net.add_constant(values.shape, weights).get_output(0)


def ints(net: Any, *values: int) -> Any:
    return constant(net, np.array(values, np.int64))


def recorded(write: Write, inputs: Mapping[str, tuple[Any, tuple[int, ...]]]) -> Program:
    """The program of a network that `write(net, **inputs)` gives the outputs of; saved and loaded on the way."""
    net = new_network()
    outputs = write(net, **{name: net.add_input(name, *form) for name, form in inputs.items()})
    for number, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        output.name = f"out{number}"
        net.mark_output(output)
    return Program.load(record(trt, net).save())


def run(write: Write, **arrays: Array) -> Array:
    """The first output for arrays whose sizes TensorRT did not know."""
    kinds = {"f": trt.float32, "i": trt.int64 if any(a.dtype == np.int64 for a in arrays.values()) else trt.int32}
    forms = {n: (trt.bool if a.dtype == bool else kinds[a.dtype.kind], (-1,) * a.ndim) for n, a in arrays.items()}
    return evaluate(recorded(write, forms), arrays)["out0"]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bits(tensor: torch.Tensor) -> Array:
    """A torch tensor as it lies in memory."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.contiguous().numpy()


def close(result: Array, expected: torch.Tensor, tolerance: float, kind: str) -> None:
    np.testing.assert_allclose(decode(result, kind), expected.float().numpy(), rtol=tolerance, atol=tolerance)
