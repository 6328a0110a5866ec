"""The fusions that make the network fast, counted in the compiled graph, so that none is lost silently."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.bfloat16 import BF16
from tests.checkpoints import make_checkpoint
from trident_backend.engine.openvino.network import compile_network
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.openvino import compiler as openvino_compiler
from trident_compiler.weights import weights
from trident_ensemble.contract.manifest import Precision

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-12": ("llama", {"num_hidden_layers": 12}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("compute", [BF16, "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_fusion_fused_nodes(case: str, compute: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / case, family, **changes))
    model = checkpoint.model
    plain = openvino_compiler.plain_format(compute)
    source = weights.WeightSource(checkpoint.tensors, plain, plain, tied=model.outline.is_tied)
    network = openvino_compiler.lower(model, source)
    precision = Precision(compute, "bf16", openvino_compiler.kv_precision(compute))
    compiled = compile_network(network.model, precision)
    nodes = compiled.get_runtime_model().get_ops()
    counts = Counter(str(node.get_rt_info()["layerType"].astype(str)) for node in nodes)

    layers = model.num_layers
    # The plugin joins gate, up, silu and down into LLMMLP only where it can use AMX.
    joined = layers if compute == "bf16" and "amx_bf16" in Path("/proc/cpuinfo").read_text().split() else 0
    expected = {
        "PagedAttention": layers,
        "RoPE": 2 * layers,
        "RMS": (4 if family == "qwen3" else 2) * layers + 1,
        "LLMMLP": joined,
        "FullyConnected": 7 * layers + 1 - 3 * joined,
    }
    assert {name: counts[name] for name in expected} == expected
    assert counts["MatMul"] == counts["Transpose"] == 0
