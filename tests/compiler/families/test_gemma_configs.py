"""Gemma's config.json: old spellings, and what is rounded, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.compiler.families.case import SIZES
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.gemma import read_gemma_config
from trident_compiler.families.words import Activation
from trident_ensemble.contract.errors import CheckpointError

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
PLAIN = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}


def config(model_type: str, **changes: Any) -> JsonConfig:
    return JsonConfig({**PLAIN, "head_dim": 32, "model_type": model_type, **changes}, "config.json")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", NAMES)
def test_gemma_embeddings_are_multiplied_in_the_checkpoint_s_number_format(key: str, dtype: torch.dtype) -> None:
    found = read_gemma_config(config("gemma", hidden_size=640, **{key: NAMES[dtype]}))
    assert found.embedding_factor == float(torch.tensor(640**0.5).to(dtype)) or dtype is torch.float32
    assert found.embedding_factor == pytest.approx(640**0.5, rel=1e-12 if dtype is torch.float32 else 4e-3)
    assert read_gemma_config(config("gemma", hidden_size=640)).embedding_factor == 640**0.5


@pytest.mark.parametrize(
    "old",
    [
        {},
        {"rope_theta": 500000.0, "rope_local_base_freq": 5000.0},
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ],
)
def test_gemma_3_old_bases_and_scaling_are_those_of_transformers(old: dict[str, Any]) -> None:
    """Before transformers 5 a key each had the two bases, and scaling was that of layers without a window."""
    expected: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gemma3_text", **PLAIN, head_dim=32, sliding_window_pattern=3, **old)
    )
    found = read_gemma_config(config("gemma3_text", sliding_window_pattern=3, **old))
    kinds = ["sliding_attention" if layer.sliding_window else "full_attention" for layer in found.layers]
    assert kinds == expected.config.layer_types == ["sliding_attention"] * 2 + ["full_attention"] + kinds[3:]
    rotary = expected.model.rotary_emb
    for layer, kind in zip(found.layers, kinds, strict=True):
        assert layer.rotary is not None
        frequencies = getattr(rotary, f"{kind}_inv_freq").numpy()
        assert layer.rotary.inverse_frequencies == pytest.approx(frequencies, rel=1e-6)


def test_gemma_s_gelu_is_meant_as_its_approximation() -> None:
    assert read_gemma_config(config("gemma", hidden_act="gelu")).activation is Activation.GELU_TANH
    assert read_gemma_config(config("gemma2", hidden_activation="gelu")).activation is Activation.GELU


def test_gemma_bounds_are_transformers_defaults_unless_null() -> None:
    usual = read_gemma_config(config("gemma2"))
    assert (usual.attention_cap, usual.logits_cap) == (50.0, 30.0)
    none = read_gemma_config(config("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None))
    assert (none.attention_cap, none.logits_cap) == (None, None)
    third = read_gemma_config(config("gemma3_text"))
    assert (third.attention_cap, third.logits_cap) == (None, None)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "sliding_window", None),
        ("gemma2", "attn_logit_softcapping", -1.0),
        ("gemma", "attn_logit_softcapping", 50.0),
        ("gemma2", "layer_types", ["full_attention"]),
    ],
)
def test_gemma_refuses_what_it_would_not_compute(model_type: str, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} = "):
        read_gemma_config(config(model_type, **{key: value}))
