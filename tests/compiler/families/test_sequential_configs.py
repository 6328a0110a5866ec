"""The config.json of families that share one network: old spellings against transformers, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.compiler.families.case import ENDS, SIZES
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.registry import read_decoder
from trident_ensemble.contract.errors import CheckpointError

HEADS = {**SIZES, "head_dim": 32}
SLIDING, FULL = "sliding_attention", "full_attention"


def read(model_type: str, **changes: Any) -> Any:
    return read_decoder(JsonConfig({**HEADS, "model_type": model_type, **changes}, "config.json")).config


@pytest.mark.parametrize("model_type", ["cohere", "cohere2", "ernie4_5", "exaone4", "glm", "granite", "helium",
    "hunyuan_v1_dense", "internlm3", "jais2", "llama", "ministral", "mistral", "nanochat", "olmo", "olmo2", "olmo3",
    "qwen2", "qwen3", "seed_oss", "smollm3"])  # fmt: skip
def test_sequential_defaults_are_those_of_transformers(model_type: str) -> None:
    """Of a config.json that has nothing but what is needed."""
    needed = {key: HEADS[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                         "num_attention_heads", "num_key_value_heads")}  # fmt: skip
    if model_type in {"ministral", "nanochat", "hunyuan_v1_dense"}:
        needed["head_dim"] = 16  # transformers needs it there
    expected: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **needed, **ENDS))
    found = read_decoder(JsonConfig({**needed, "model_type": model_type}, "config.json")).config
    config = expected.config
    assert found.max_position_embeddings == config.max_position_embeddings
    assert found.tie_word_embeddings == config.tie_word_embeddings
    names = {name for name, _ in expected.named_parameters()}
    used = {use.name for use in read_decoder(JsonConfig({**needed, "model_type": model_type}, "x")).outline.weights}
    assert {name.split("[")[0] for name in used} == names
    rotary = next(layer.rotary for layer in found.layers if layer.rotary is not None)
    frequencies = [value for name, value in expected.named_buffers() if name.endswith("inv_freq")]
    sign = -1 if model_type == "nanochat" else 1
    assert rotary.inverse_frequencies == pytest.approx(sign * frequencies[-1].numpy(), rel=1e-6)


def test_sequential_an_alpha_stretches_the_base_in_the_old_spelling_too() -> None:
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    [*_, kind] = read("hunyuan_v1_dense", rope_scaling=scaling).layers
    base = 10000.0 * 1000.0 ** (32 / 30)
    np.testing.assert_allclose(kind.rotary.inverse_frequencies, base ** (-np.arange(0, 32, 2) / 32), rtol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "changes", "key"),
    [
        ("llama", {"num_local_experts": 4}, "num_local_experts"),
        ("llama", {"use_sliding_window": True}, "use_sliding_window"),
        ("iquestcoder", {"clip_qkv": 8.0}, "clip_qkv"),
        ("internlm3", {"qkv_bias": True}, "qkv_bias"),
        ("ministral", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("ministral", {"layer_types": [SLIDING] * 4, "sliding_window": None}, "sliding_window"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmo", {"clip_qkv": 0}, "clip_qkv"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere2", {"head_dim": 64}, "head_dim"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers"),
        ("granite_swa", {"layer_rope_theta": [10000.0]}, "layer_rope_theta"),
        ("granite", {"logits_scaling": 0}, "logits_scaling"),
        ("glm", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ],
)
def test_sequential_refuses_by_key_and_value(model_type: str, changes: dict[str, Any], key: str) -> None:
    sized = {"head_dim": 16, **changes}
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} = "):
        read(model_type, **sized)


def test_sequential_windows_and_rotation_follow_old_patterns() -> None:
    kinds = read("exaone4", sliding_window_pattern=2, sliding_window=16).layers
    assert [layer.sliding_window for layer in kinds] == [16, None, 16, None]
    assert [layer.rotary is None for layer in kinds] == [False, True, False, True]
    kinds = read("cohere2", sliding_window_pattern=3, sliding_window=16, head_dim=16).layers
    assert [layer.sliding_window for layer in kinds] == [16, 16, None, 16]
    assert [layer.rotary is None for layer in kinds] == [False, False, True, False]
    assert [layer.sliding_window for layer in read("ministral", sliding_window=None).layers] == [None] * 4
    assert all(layer.rotary is not None for layer in read("exaone4", sliding_window=None).layers)
