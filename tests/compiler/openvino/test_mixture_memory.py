"""The memory of a mixture's weights: its file holds them once, and a running network no more than the plan says."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_compiler.families.family import Decoder
from trident_compiler.families.registry import read_decoder
from trident_compiler.openvino.compiler import RESIDENT_SHARE, formats_of, write_network
from trident_compiler.openvino.lowering import OpenVINOLowering
from trident_compiler.openvino.probe import RandomWeights
from trident_compiler.weights.formats import estimated_bytes
from trident_ensemble.contract import layout
from trident_ensemble.contract.manifest import Precision

pytestmark = pytest.mark.slow

#: Loads two networks, the first so that what is measured is the second and not the libraries.
LOAD = """
import sys
from pathlib import Path
import openvino
from trident_backend.engine.openvino.network import cache_geometry, compile_network
from trident_compiler.openvino.probe import step_inputs
from trident_ensemble.contract.manifest import Precision

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

requests = []
for file in sys.argv[2:]:
    before = resident()
    network = openvino.Core().read_model(file)
    compiled = compile_network(network, Precision("fp32", sys.argv[1], "f32"))
    requests.append(compiled.create_infer_request())
    for tensor in cache_geometry(compiled).tensors:
        shape = openvino.Shape([8, *tensor.block_shape])
        requests[-1].set_tensor(tensor.name, openvino.Tensor(tensor.element_type, shape))
    for size in (1, 8):
        for name, values in step_inputs(size, 1, 0, 1).items():
            requests[-1].set_tensor(name, openvino.Tensor(values))
        requests[-1].infer()
print(resident() - before)
"""


class DistinctWeights(RandomWeights):
    """Random weights of which no two are alike, as a network's file holds equal ones once."""

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        self._values = generator.standard_normal(1 << 16, np.float32) * np.float32(0.02)
        return super()._stored(name, shape)


def _mixture(num_experts: int, hidden_size: int, experts_size: int) -> Decoder:
    """One layer, whose experts together have so many inner features."""
    sizes: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": hidden_size, "intermediate_size": experts_size // num_experts,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2,
        "num_local_experts": num_experts, "max_position_embeddings": 512,
    }  # fmt: skip
    return read_decoder(JsonConfig({"model_type": "mixtral", **sizes}, "config.json"))


def _write(folder: Path, model: Decoder, weights: str) -> Path:
    folder.mkdir()
    formats = formats_of(Precision("fp32", weights, "f32"))
    net = OpenVINOLowering()
    source = DistinctWeights("BF16", formats.matrix, formats.plain, tied=False)
    write_network(folder, net.network(model.write(net, source), model.vocab_size))
    return folder / layout.NETWORK_FILE


@pytest.mark.parametrize(
    ("weights", "num_experts"), [("bf16", 8), ("bf16", 16), ("int8", 8), ("int8", 16), ("int4", 8), ("int4", 16)]
)
def test_mixture_memory_is_what_the_plan_says(weights: str, num_experts: int, tmp_path: Path) -> None:
    # Large enough for what any network takes beside its weights not to count.
    large = _mixture(num_experts, 1024, 32768 if weights == "int4" else 16384)
    small = _write(tmp_path / "small", _mixture(num_experts, 64, 1024), weights)
    file = _write(tmp_path / "large", large, weights)
    planned = estimated_bytes(large.outline.weights, weights)
    assert (file.parent / layout.WEIGHTS_FILE).stat().st_size == pytest.approx(planned, rel=0.03)
    command = [sys.executable, "-c", LOAD, weights, str(small), str(file)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) <= RESIDENT_SHARE * planned
