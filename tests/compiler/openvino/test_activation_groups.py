"""Activations that are quantized beside weights: their groups, where those are recorded, and what quality is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.backend.engine.conftest import build
from tests.checkpoints import make_checkpoint
from tests.perplexity import WINDOW, perplexity
from trident_backend.engine.factory import load_engine
from trident_backend.engine.openvino.network import compile_network
from trident_compiler.weights.formats import activation_group
from trident_compiler.weights.roles import Role, WeightUse
from trident_ensemble.contract import layout
from trident_ensemble.contract.manifest import read_manifest

DEMO = Path(__file__).parents[3] / "tools" / "demo" / "checkpoint"
#: Documentation of Python code, as the demo model was trained on, but none that it has seen.
HELD_OUT = "\n\n".join(str(doc) for doc in (np.ufunc.__doc__, np.ndarray.__doc__, np.einsum.__doc__, np.dtype.__doc__))


@given(st.lists(st.integers(1, 40), min_size=1), st.sampled_from([1, 32, 64, 128, 256]))
def test_activation_groups_activation_group_divides_every_group_of_weights(factors: list[int], unit: int) -> None:
    widths = [factor * unit for factor in factors]
    uses = [WeightUse(str(width), Role.COLUMN, (8, width)) for width in widths]
    for weights in ("int8", "int4"):
        found = activation_group(uses, weights)
        grouped = [width for width in widths if width % 32 == 0]
        assert found in ({32, 64, 128} if grouped else {0})
        assert all(width % found == 0 for width in grouped)
        assert found == 128 or not grouped or any(width % (2 * found) for width in grouped)
    assert activation_group(uses, "bf16") == activation_group(uses, "fp8") == 0


@pytest.mark.parametrize(("hidden_size", "group"), [(128, 128), (192, 64)])
def test_activation_groups_activation_group_is_in_the_manifest_and_reaches_the_plugin(
    hidden_size: int, group: int, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "head_dim": 32,
    }
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", **sizes)
    for weights, expected in (("int8", group), (None, 0)):
        folder = build(checkpoint, tmp_path / str(weights), "fp32", weights)
        precision = read_manifest(folder).precision
        assert precision.activation_group == expected
        compiled = compile_network(ov.Core().read_model(folder / layout.NETWORK_FILE), precision)
        if expected:
            assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == expected


@pytest.mark.parametrize(("weights", "most"), [("int8", 1.02), ("int4", 1.10)])
def test_activation_groups_quantized_weights_keep_the_perplexity_of_the_demo_within_bounds(
    weights: str, most: float, tmp_path: Path
) -> None:
    """With the activations as this CPU's plugin quantizes them: in int8 with AVX-512 or VNNI, not at all without."""
    tokenizer = Tokenizer.from_file(str(DEMO / layout.TOKENIZER_FILE))
    ids = tokenizer.encode(HELD_OUT, add_special_tokens=False).ids
    assert len(ids) > 4 * WINDOW
    found = {}
    for name in (None, weights):
        engine, _ = load_engine(build(DEMO, tmp_path / str(name), "fp32", name))
        found[name] = perplexity(engine, ids)
        engine.close()
    assert found[None] < 600, "far better than chance among 3072 tokens"
    assert found[weights] <= most * found[None], found
