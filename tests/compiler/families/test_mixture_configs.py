"""Configurations of mixtures: what is refused, and what planners, probes and simulations learn of a mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.compiler.families.cases import deepseek as deepseek_cases
from tests.compiler.families.cases import mixtral, qwen_moe
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.families.family import Decoder
from trident_compiler.families.registry import read_decoder
from trident_compiler.openvino.compiler import measure_precisions
from trident_compiler.openvino.probe import probe_model
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.contract.manifest import Precision
from trident_tools.simulation.model_shape import model_shape

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


def _read(model_type: str, **values: Any) -> Decoder:
    return read_decoder(JsonConfig({"model_type": model_type, **SIZES, **values}, "config.json"))


@pytest.mark.parametrize(
    ("model_type", "values", "problem"),
    [
        (
            "mixtral",
            {"num_local_experts": 2, "num_experts_per_tok": 3},
            r"num_experts_per_tok = 3: there are 2 experts",
        ),
        ("qwen3_moe", {"mlp_only_layers": "all"}, r"mlp_only_layers = 'all': must be a list"),
        ("gpt_oss", {"hidden_act": "gelu"}, r"hidden_act = 'gelu': not supported; 'silu' is"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, r"topk_method = 'noaux_tc': .* group_limited_greedy are"),
        ("deepseek_v2", {"norm_topk_prob": True}, r"norm_topk_prob = True: not supported; False is"),
        ("deepseek_v3", {"scoring_func": "softmax"}, r"scoring_func = 'softmax': not supported; 'sigmoid' is"),
        ("deepseek_v3", {"n_routed_experts": 12, "n_group": 5}, r"n_group = 5: does not divide 12 experts"),
        (
            "deepseek_v3",
            {"n_routed_experts": 16, "n_group": 4, "topk_group": 1, "num_experts_per_tok": 8},
            r"topk_group = 1: 8 experts are chosen from 1 of 4 groups",
        ),
        ("deepseek_v3", {"moe_layer_freq": 2}, r"moe_layer_freq = 2: not supported; 1 is"),
    ],
)
def test_mixture_configs_are_refused_by_key_and_value(model_type: str, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        _read(model_type, **values)


def test_mixture_configs_experts_are_counted_under_either_key() -> None:
    for key in ("num_experts", "num_local_experts"):
        model = _read("qwen3_moe", **{key: 24, "moe_intermediate_size": 32})
        stacks = [use for use in model.outline.weights if use.name in model.outline.shares]
        assert {use.shape[0] for use in stacks} == {24}


def test_mixture_configs_layers_without_experts_have_the_feed_forward_of_the_dense() -> None:
    model = _read("qwen2_moe", num_experts=8, decoder_sparse_step=2, mlp_only_layers=[3])
    with_experts = {use.name.split(".")[2] for use in model.outline.weights if ".experts." in use.name}
    assert with_experts == {"1"}


def test_mixture_configs_the_layer_that_only_training_needs_is_left_out(tmp_path: Path) -> None:
    deepseek_cases.CASES[2].save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "model.layers.3.eh_proj.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors"
    )
    source = WeightSource(TensorFiles(tmp_path), "fp32", "fp32", tied=False)
    read_decoder(JsonConfig.read(tmp_path / "config.json")).write(MagicMock(), source)
    source.require_all_used()


def test_mixture_configs_a_simulation_counts_the_experts_that_are_used() -> None:
    model = _read("mixtral", num_local_experts=8, num_experts_per_tok=2)
    shape = model_shape(model, "bf16", "bf16")
    attention, expert = 64 * (64 + 32 + 32 + 64), 3 * 64 * 96
    assert shape.layer_weights == 4 * (attention + 2 * expert)
    assert shape.layer_bytes == 2 * 4 * (attention + 8 * expert)
    # One token reads its two experts, many read all.
    assert shape.read_bytes(1) == pytest.approx(2 * 4 * (attention + 2 * expert))
    assert shape.read_bytes(2) == pytest.approx(2 * 4 * (attention + 8 * expert * (1 - 0.75**2)))
    assert shape.read_bytes(1000) == pytest.approx(shape.layer_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("case", [mixtral.CASES[0], qwen_moe.CASES[1], deepseek_cases.CASES[3]], ids=str)
def test_mixture_configs_probes_take_a_mixture(case: Any, tmp_path: Path) -> None:
    case.save(tmp_path)
    model = read_decoder(JsonConfig.read(tmp_path / "config.json"))
    exact = Precision("fp32", "int8", "f32")
    assert measure_precisions(model, exact, exact, "BF16").gain() > 0


def test_mixture_configs_a_large_mixture_is_cut_and_keeps_its_experts() -> None:
    large = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    model = _read("mixtral", **large, num_local_experts=8)
    small = probe_model(model)
    assert small.outline.size(Role.COLUMN, Role.ROW, Role.WHOLE) <= 1 << 24
    assert {use.shape[0] for use in small.outline.weights if use.name in small.outline.shares} == {8}
    # A first layer without experts is not the one that is timed.
    latent = _read("deepseek_v3", first_k_dense_replace=1, num_key_value_heads=4, n_routed_experts=16)
    assert latent.reduced(num_layers=1, vocab_size=96).outline.shares
