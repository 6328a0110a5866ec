"""Rotary embeddings against transformers' modules, in the keys of transformers 5 and of those before."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    StableLmConfig,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.stablelm.modeling_stablelm import StableLmRotaryEmbedding

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import Rotary, read_rotary
from trident_ensemble.contract.errors import CheckpointError

MAX_POSITIONS = 131072
HEAD_DIM = 128
SIZES: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": MAX_POSITIONS}
ORIGINAL = {"original_max_position_embeddings": 8192}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
SHORT = [1.0 + 0.01 * pair for pair in range(HEAD_DIM // 2)]
LONG = [1.0 + 0.7 * pair for pair in range(HEAD_DIM // 2)]
LONGROPE = {"short_factor": SHORT, "long_factor": LONG}
KINDS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", "factor": 16.0, **ORIGINAL},
    {"rope_type": "yarn", "factor": None, **ORIGINAL},
    {"rope_type": "yarn", "factor": 0.5},
    {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, **ORIGINAL},
    {"rope_type": "yarn", "factor": 32.0, "beta_fast": 0, "beta_slow": None, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 0.7, **ORIGINAL},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707, **ORIGINAL},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0, **ORIGINAL},
    {"rope_type": "longrope", **LONGROPE, **ORIGINAL},
    {"rope_type": "longrope", "factor": 4.0, **LONGROPE, **ORIGINAL},
    {"rope_type": "longrope", "attention_factor": 1.5, **LONGROPE, **ORIGINAL},
    {"rope_type": "longrope", "factor": 0.5, **LONGROPE, **ORIGINAL},
]


def read(keys: dict[str, Any], head_dim: int = HEAD_DIM, max_positions: int = MAX_POSITIONS, **options: Any) -> Rotary:
    return read_rotary(JsonConfig(keys, "config.json"), head_dim, max_positions, **options)


def assert_equal(found: Rotary, frequencies: torch.Tensor, factor: float) -> None:
    assert found.inverse_frequencies.dtype == np.float32
    assert found.rotated == 2 * len(frequencies)
    np.testing.assert_allclose(found.inverse_frequencies, frequencies.numpy(), rtol=1e-6)
    assert found.factor == pytest.approx(factor, rel=1e-6)


def assert_equals_transformers(keys: dict[str, Any], **sizes: Any) -> None:
    """Compare with a module that rotates whole heads."""
    config = LlamaConfig(**{**SIZES, **sizes}, **copy.deepcopy(keys))
    module = LlamaRotaryEmbedding(config)
    found = read(keys, config.head_dim, config.max_position_embeddings)
    assert_equal(found, module.inv_freq, module.attention_scaling)
    if found.long is not None:
        module(torch.zeros(1), torch.tensor([[found.original_positions]]))
        assert_equal(found.long, module.inv_freq, module.attention_scaling)


@pytest.mark.parametrize("parameters", KINDS)
def test_read_rotary_equals_transformers_5(parameters: dict[str, Any]) -> None:
    assert_equals_transformers({"rope_parameters": {**parameters, "rope_theta": 500000.0}})


@pytest.mark.parametrize("parameters", KINDS)
@pytest.mark.parametrize("kind_key", ["rope_type", "type"])
def test_read_rotary_equals_transformers_with_the_keys_of_hub_files(parameters: dict[str, Any], kind_key: str) -> None:
    scaling = {kind_key if key == "rope_type" else key: value for key, value in parameters.items()}
    assert_equals_transformers({"rope_scaling": scaling, "rope_theta": 500000.0})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_theta": 500000.0},
        {"rope_theta": 1000000, "rope_scaling": None},
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2}},
        # Where both are there, the old one is right; where both numbers are, the outer one is.
        {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": {"rope_type": "default"}},
        {"original_max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, **ORIGINAL}},
    ],
)
def test_read_rotary_the_same_keys_win_as_in_transformers(keys: dict[str, Any]) -> None:
    assert_equals_transformers(keys)


POSITIONS = st.integers(2, 2**20)
FACTORS = st.floats(1.0, 64.0)
BETAS = st.floats(0.1, 100.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    theta=st.floats(1.5, 1e8),
    head_dim=st.integers(1, 128).map(lambda half: 2 * half),
    max_positions=POSITIONS,
    parameters=st.one_of(
        st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": FACTORS}),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("llama3"),
                "factor": FACTORS,
                "low_freq_factor": st.floats(0.5, 2.0),
                "high_freq_factor": st.floats(2.5, 8.0),
                "original_max_position_embeddings": POSITIONS,
            }
        ),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("yarn"),
                "factor": FACTORS,
                "original_max_position_embeddings": POSITIONS,
                "truncate": st.booleans(),
            },
            optional={
                "beta_fast": BETAS,
                "beta_slow": BETAS,
                "mscale": BETAS,
                "mscale_all_dim": BETAS,
                "attention_factor": FACTORS,
            },
        ),
    ),
)
def test_read_rotary_equals_transformers_for_any_numbers(
    theta: float, head_dim: int, max_positions: int, parameters: dict[str, Any]
) -> None:
    assert_equals_transformers(
        {"rope_parameters": {**parameters, "rope_theta": theta}},
        head_dim=head_dim,
        max_position_embeddings=max_positions,
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    factors=st.lists(st.tuples(FACTORS, FACTORS), min_size=1, max_size=64),
    max_positions=POSITIONS,
    original=POSITIONS,
    optional=st.fixed_dictionaries({}, optional={"factor": FACTORS, "attention_factor": FACTORS}),
)
def test_read_rotary_longrope_equals_transformers_for_any_numbers(
    factors: list[tuple[float, float]], max_positions: int, original: int, optional: dict[str, float]
) -> None:
    short, long = (list(column) for column in zip(*factors, strict=True))
    lists = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": original}
    keys = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **lists, **optional}}
    assert_equals_transformers(keys, head_dim=2 * len(factors), max_position_embeddings=max_positions)


@pytest.mark.parametrize("kind", ["su", "longrope", "yarn"])
def test_read_rotary_longrope_has_other_names_in_old_files(kind: str) -> None:
    def old_file(kind: str) -> dict[str, Any]:
        return {
            "rope_theta": 10000.0,
            "rope_scaling": {"type": kind, "short_factor": SHORT[:32], "long_factor": LONG[:32]},
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.5,
        }

    # transformers means to read "su" too, but misses a key of it before it comes to that.
    config = Phi3Config(**SIZES, **old_file("longrope" if kind == "su" else kind), pad_token_id=None)
    module = Phi3RotaryEmbedding(config)
    found = read(old_file(kind), partial=1.0)
    assert_equal(found, module.inv_freq, module.attention_scaling)
    assert found.rotated == 64
    assert found.original_positions == 4096


def test_read_rotary_refuses_heads_of_an_odd_size() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: head_dim = 15: .* even"):
        read({"head_dim": 15}, head_dim=15)


def test_rotary_long_sequences_have_their_own_frequencies() -> None:
    found = read({"rope_parameters": {"rope_type": "longrope", **LONGROPE, **ORIGINAL}})
    assert found.at(8192) is found
    assert found.at(8193) is found.long
    plain = read({})
    assert plain.at(MAX_POSITIONS) is plain


@pytest.mark.parametrize(
    ("config_class", "module_class", "default"),
    [(PhiConfig, PhiRotaryEmbedding, 0.5), (StableLmConfig, StableLmRotaryEmbedding, 0.25)],
)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"partial_rotary_factor": 0.75},
        {"partial_rotary_factor": 0.75, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"partial_rotary_factor": 0.75, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "partial_rotary_factor": 0.25}},
    ],
)
def test_read_rotary_a_part_of_a_head_equals_transformers(
    config_class: Any, module_class: Any, default: float, keys: dict[str, Any]
) -> None:
    module = module_class(config_class(**SIZES, **copy.deepcopy(keys)))
    assert_equal(read(keys, partial=default), module.inv_freq, module.attention_scaling)


@pytest.mark.parametrize("keys", [{}, {"rotary_pct": 0.5, "rotary_emb_base": 20000}])
def test_read_rotary_other_keys_of_base_and_part(keys: dict[str, Any]) -> None:
    module = GPTNeoXRotaryEmbedding(GPTNeoXConfig(**SIZES, **keys))
    found = read(keys, theta_key="rotary_emb_base", partial=keys.get("rotary_pct", 0.25))
    assert_equal(found, module.inv_freq, module.attention_scaling)
    assert read({}, rotated=64).rotated == 64


SECTIONS: dict[str, dict[str, Any]] = {
    "full_attention": {"theta": 1000000.0},
    "sliding_attention": {"theta": 10000.0, "theta_key": "rope_local_base_freq"},
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope_theta": 2000000.0, "rope_local_base_freq": 20000.0},
        {"rope_theta": 2000000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30000.0},
            }
        },
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": None}},
    ],
)
@pytest.mark.parametrize("section", SECTIONS)
def test_read_rotary_kinds_of_layers_have_their_own(keys: dict[str, Any], section: str) -> None:
    config = Gemma3TextConfig(**SIZES, head_dim=HEAD_DIM, **copy.deepcopy(keys))
    module = Gemma3RotaryEmbedding(config)
    found = read(keys, section=section, **SECTIONS[section])
    assert_equal(found, getattr(module, f"{section}_inv_freq"), getattr(module, f"{section}_attention_scaling"))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 500000, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, **ORIGINAL}},
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 5e5}}},
    ],
)
def test_read_rotary_scaling_of_old_files_is_of_full_attention(keys: dict[str, Any], section: str) -> None:
    module = Olmo3RotaryEmbedding(Olmo3Config(**SIZES, **copy.deepcopy(keys)))
    found = read(keys, section=section, theta=500000.0)
    assert_equal(found, getattr(module, f"{section}_inv_freq"), getattr(module, f"{section}_attention_scaling"))


def scaled(kind: str, **keys: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **keys}}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (scaled("mrope", mrope_section=[16, 24, 24]), ["rope_scaling", "rope_type", "mrope"]),
        (scaled("proportional"), ["proportional"]),
        ({"rope_parameters": {"type": "axial"}}, ["rope_parameters", "type", "axial"]),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, ["rope_type", "['yarn']"]),
        ({"rope_parameters": "yarn"}, ["rope_parameters", "object"]),
        ({"rope_parameters": {"full_attention": {}}}, ["full_attention", "each kind of layer"]),
        ({"rope_theta": -1}, ["rope_theta", "-1"]),
        ({"rope_theta": 1}, ["rope_theta", "1"]),
        ({"rope_theta": 1e300}, ["rope_theta", "1e+300"]),
        ({"rope_theta": float("nan")}, ["rope_theta", "nan"]),
        ({"rope_theta": True}, ["rope_theta", "True"]),
        ({"rope_parameters": {"rope_theta": 0.5}}, ["rope_parameters", "rope_theta", "0.5"]),
        (scaled("linear"), ["factor", "None"]),
        (scaled("linear", factor="2"), ["factor", "'2'"]),
        (scaled("linear", factor=float("inf")), ["factor", "inf"]),
        (scaled("linear", factor=1e-300), ["rope_scaling", "float32"]),
        (scaled("dynamic", factor=-2), ["factor", "-2"]),
        (scaled("llama3", factor=8.0, low_freq_factor=1.0), ["high_freq_factor", "None"]),
        (scaled("llama3", **{**LLAMA3, "original_max_position_embeddings": 0.5}), ["original_max", "0.5"]),
        ({**scaled("yarn", factor=8.0), "original_max_position_embeddings": 2**40}, ["original_max"]),
        (scaled("yarn", factor=8.0, truncate="no"), ["truncate", "'no'"]),
        (scaled("yarn", factor=8.0, beta_fast=1e308), ["beta_fast", "1e+308"]),
        (scaled("yarn", factor=8.0, mscale=-1, mscale_all_dim=1), ["mscale", "-1"]),
        (scaled("yarn", factor=8.0, attention_factor=0), ["attention_factor", "0"]),
        (scaled("longrope", **LONGROPE), ["original_max_position_embeddings", "longrope"]),
        (scaled("longrope", **{**LONGROPE, "long_factor": LONG[1:]}, **ORIGINAL), ["long_factor", "64 numbers"]),
        (scaled("longrope", short_factor=SHORT, **ORIGINAL), ["long_factor", "None"]),
        (
            scaled("longrope", **{**LONGROPE, "short_factor": [*SHORT[1:], -3.0]}, **ORIGINAL),
            ["short_factor[63]", "-3"],
        ),
        (
            scaled("longrope", **{**LONGROPE, "short_factor": [*SHORT[1:], "3"]}, **ORIGINAL),
            ["short_factor[63]", "'3'"],
        ),
    ],
)
def test_read_rotary_names_what_is_wrong(keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(keys)
    assert all(word in str(refusal.value) for word in ["config.json", *words])


@pytest.mark.parametrize(
    ("keys", "options", "words"),
    [
        ({"partial_rotary_factor": 0.5}, {}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, {}, ["rope_parameters", "partial_rotary_factor", "0.5"]),
        ({"partial_rotary_factor": 1.5}, {"partial": 1.0}, ["partial_rotary_factor", "1.5"]),
        ({"partial_rotary_factor": 1e-9}, {"partial": 1.0}, ["partial_rotary_factor", "gives 0"]),
        ({"partial_rotary_factor": 0.4}, {"partial": 1.0}, ["partial_rotary_factor", "gives 51"]),
        ({"rope_parameters": {"rope_type": "default"}}, {"section": "full_attention"}, ["rope_type", "full_attention"]),
        ({"rope_parameters": {"full_attention": "x"}}, {"section": "full_attention"}, ["full_attention", "'x'"]),
    ],
)
def test_read_rotary_names_what_does_not_fit_the_family(
    keys: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(keys, **options)
    assert all(word in str(refusal.value) for word in ["config.json", *words])
