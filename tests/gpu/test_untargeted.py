"""A plan that TensorRT-RTX builds without a target: whether the GPU at hand runs it, Hopper above all.

TensorRT-RTX names no target for Hopper, but its library has kernels for it, and a plan without a target is marked for
more than the targets that have names. Nobody has tried. This test does, with attention over a small cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import hardware
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.tensorrt.plan import Plan

NUM_HEADS, HEAD_DIM, LENGTH = 4, 64, 32


def rtx() -> Any:
    """TensorRT-RTX's module, or the test is skipped."""
    if reason := hardware.module_missing("tensorrt_rtx"):
        pytest.skip(reason)
    return hardware.import_compiler("tensorrt_rtx")


def attention_plan(trt: Any) -> bytes:
    """Attention of one query to `LENGTH` keys, in half precision, for no GPU in particular."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    query = network.add_input("query", trt.float16, (1, NUM_HEADS, 1, HEAD_DIM))
    key = network.add_input("key", trt.float16, (1, NUM_HEADS, LENGTH, HEAD_DIM))
    value = network.add_input("value", trt.float16, (1, NUM_HEADS, LENGTH, HEAD_DIM))
    softmax, unmasked = trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
    out = network.add_attention_v2(query, key, value, softmax, unmasked).get_output(0)
    out.name = "out"
    network.mark_output(out)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None
    return bytes(plan)


def test_untargeted_the_plan_is_built_without_a_gpu() -> None:
    assert len(attention_plan(rtx())) > 1000


@pytest.mark.gpu
def test_untargeted_a_plan_without_a_target_runs_on_this_gpu(tmp_path: Path, record_property: Any) -> None:
    trt = rtx()
    content = attention_plan(trt)
    validity, diagnostics = trt.Runtime(trt.Logger(trt.Logger.ERROR)).get_engine_validity(content)
    record_property("validity", f"{hardware.gpu_name()}: {validity}, diagnostics {diagnostics}")
    if validity == trt.EngineValidity.INVALID:
        pytest.xfail(f"TensorRT-RTX says that its plan does not run on {hardware.gpu_name()}: {diagnostics}")
    path = tmp_path / "attention.plan"
    path.write_bytes(content)
    device = Device(0)
    plan = Plan(path, device, trt)
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.standard_normal((NUM_HEADS, length, HEAD_DIM)).astype(np.float16)
        for name, length in {"query": 1, "key": LENGTH, "value": LENGTH}.items()
    }
    found = np.empty((NUM_HEADS, 1, HEAD_DIM), np.float16)
    addresses = {name: device.allocate(array.nbytes) for name, array in {**inputs, "out": found}.items()}
    try:
        for name, array in inputs.items():
            device.upload(addresses[name], array)
        plan.run({}, addresses)
        device.download(found, addresses["out"])
        device.synchronize()
    finally:
        plan.close()
        for address in addresses.values():
            device.free(address)
        device.close()
    query, key, value = (inputs[name].astype(np.float32) for name in ("query", "key", "value"))
    weights = np.exp(query @ key.transpose(0, 2, 1))
    expected = weights / weights.sum(-1, keepdims=True) @ value
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.02)
