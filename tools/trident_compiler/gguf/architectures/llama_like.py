"""Decoders whose layers are named as Llama's are.

Owns what the keys of each mean for config.json, and where its tensors differ from Llama's. Never reads a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trident_compiler.gguf.architectures.mixtures import GRANITE_EXPERTS, SPARSE, experts_config
from trident_compiler.gguf.architectures.model import (
    ATTENTION,
    ENDS,
    GATED,
    NORMS,
    QK_NORMS,
    Architecture,
    Model,
    describe,
)
from trident_compiler.gguf.configs import decoder, head_dim, layer_norm, rms_norm, rotary
from trident_compiler.gguf.entries import Entry, Table, renamed, reordered
from trident_compiler.gguf.layout import Indices, Part, Rows, Source, Target

#: Without a gate.
_PLAIN: Table = {"ffn_up": renamed("mlp.up_proj"), "ffn_down": renamed("mlp.down_proj")}
#: Where norms follow attention and the feed-forward.
_NORMS_BEHIND: Table = {
    "post_attention_norm": renamed("post_attention_layernorm"),
    "post_ffw_norm": renamed("post_feedforward_layernorm"),
}


def _in_halves(num_heads: int, size: int, num_rows: int) -> Indices | None:
    """Return the order that puts each head's even rows before its odd ones.

    A file of such an architecture holds the rows of queries and keys for a rotation of neighbours, the hub for a
    rotation of halves.
    """
    if num_heads * size != num_rows or size % 2:
        return None
    return np.arange(num_rows).reshape(num_heads, size // 2, 2).swapaxes(1, 2).ravel()


def _queries(source: Source, num_rows: int) -> Indices | None:
    return _in_halves(source.integer("attention.head_count"), head_dim(source), num_rows)


def _keys(source: Source, num_rows: int) -> Indices | None:
    heads = source.integer("attention.head_count")
    return _in_halves(source.integer("attention.head_count_kv", heads), head_dim(source), num_rows)


INTERLEAVED: Table = ATTENTION | {
    "attn_q": reordered("self_attn.q_proj", _queries),
    "attn_k": reordered("self_attn.k_proj", _keys),
}


def _has_bias(source: Source, name: str = "attn_q") -> bool:
    return source.has(f"blk.0.{name}.bias")


def _llama(source: Source) -> Model:
    config = decoder(source) | rms_norm(source)
    if source.has_key("expert_count") and source.integer("expert_count", least=0):
        return describe(
            source, "mixtral", "MixtralForCausalLM", config | experts_config(source, "num_local_experts"),
            INTERLEAVED | NORMS | SPARSE,
        )  # fmt: skip
    biases = {"attention_bias": _has_bias(source), "mlp_bias": _has_bias(source, "ffn_up")}
    return describe(source, "llama", "LlamaForCausalLM", config | biases, INTERLEAVED | NORMS | GATED)


def _qwen2(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | {"use_sliding_window": False}
    return describe(source, "qwen2", "Qwen2ForCausalLM", config, ATTENTION | NORMS | GATED)


def _qwen3(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | {"use_sliding_window": False, "attention_bias": _has_bias(source)}
    return describe(source, "qwen3", "Qwen3ForCausalLM", config, ATTENTION | NORMS | QK_NORMS | GATED)


def _smollm3(source: Source) -> Model:
    config = decoder(source) | rms_norm(source)
    # The file does not say so: no rotation in every fourth layer.
    config |= {"no_rope_layer_interval": 4, "use_sliding_window": False, "attention_bias": _has_bias(source)}
    return describe(source, "smollm3", "SmolLM3ForCausalLM", config, INTERLEAVED | NORMS | GATED)


def _olmo(source: Source) -> Model:
    config = decoder(source) | {"clip_qkv": _clip(source)}
    ends = {name: entry for name, entry in ENDS.items() if name != "output_norm"}
    return describe(source, "olmo", "OlmoForCausalLM", config, INTERLEAVED | GATED, ends=ends)


def _clip(source: Source) -> float | None:
    return source.number("attention.clamp_kqv") if source.has_key("attention.clamp_kqv") else None


def _olmo2(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | {"attention_bias": _has_bias(source)}
    table = ATTENTION | QK_NORMS | _NORMS_BEHIND | GATED
    if not source.has_key("attention.sliding_window"):
        return describe(source, "olmo2", "Olmo2ForCausalLM", config, table)
    return describe(source, "olmo3", "Olmo3ForCausalLM", config | windows(source, every=4), table)


def windows(source: Source, *, every: int) -> dict[str, Any]:
    """Return which layers see a window alone; where the file does not say, all but every so many."""
    num_layers = source.integer("block_count")
    if not source.has_key("attention.sliding_window"):
        return {"sliding_window": None, "layer_types": ["full_attention"] * num_layers}
    kinds = source.flags("attention.sliding_window_pattern", num_layers)
    if kinds is None:
        kinds = [(layer + 1) % every != 0 for layer in range(num_layers)]
    return {
        "sliding_window": source.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if kind else "full_attention" for kind in kinds],
    }


def _exaone4(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | windows(source, every=4)
    return describe(source, "exaone4", "Exaone4ForCausalLM", config, ATTENTION | QK_NORMS | _NORMS_BEHIND | GATED)


def _granite(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | granite_multipliers(source) | {"attention_bias": _has_bias(source)}
    return describe(source, "granite", "GraniteForCausalLM", config, INTERLEAVED | NORMS | GATED)


def granite_multipliers(source: Source) -> dict[str, Any]:
    """Return the numbers that Granite multiplies with."""
    return {
        "attention_multiplier": source.number("attention.scale", 1.0),
        "embedding_multiplier": source.number("embedding_scale", 1.0),
        "residual_multiplier": source.number("residual_scale", 1.0),
        "logits_scaling": source.number("logit_scale", 1.0),
    }


def _starcoder2(source: Source) -> Model:
    config = decoder(source) | layer_norm(source, "norm_epsilon")
    config |= {"sliding_window": None, "use_bias": _has_bias(source)}
    table = ATTENTION | NORMS | {"ffn_up": renamed("mlp.c_fc"), "ffn_down": renamed("mlp.c_proj")}
    return describe(source, "starcoder2", "Starcoder2ForCausalLM", config, table)


def _norms_of_heads(target: str) -> Entry:
    """Return the entry of norms that the checkpoint has for each head by itself."""

    def make(source: Source, stored: str, name: str) -> list[Target]:
        heads, size = source.tensor(stored).shape[0], source.tensor(stored).shape[-1]
        base = name.removesuffix(".weight")
        return [
            Target(f"{base}.{head}.weight", (size,), (Part((Rows(stored, range(head, head + 1)),)),))
            for head in range(heads)
        ]

    return Entry(target, make, optional=True)


def _stablelm(source: Source) -> Model:
    config = decoder(source) | layer_norm(source) | {"rope_parameters": rotary(source, partial=True)}
    parallel = not source.has("blk.0.ffn_norm.weight")
    config |= {
        "use_parallel_residual": parallel,
        "use_qkv_bias": _has_bias(source),
        "qk_layernorm": source.has("blk.0.attn_q_norm.weight"),
    }
    table = ATTENTION | GATED | {
        "attn_norm": renamed("input_layernorm"),
        "ffn_norm": renamed("post_attention_layernorm", optional=True),
        "attn_q_norm": _norms_of_heads("self_attn.q_layernorm.norms"),
        "attn_k_norm": _norms_of_heads("self_attn.k_layernorm.norms"),
    }  # fmt: skip
    return describe(source, "stablelm", "StableLmForCausalLM", config, table)


def _nemotron(source: Source) -> Model:
    config = decoder(source) | layer_norm(source, "norm_eps")
    config |= {
        "rope_parameters": rotary(source, partial=True),
        "attention_bias": _has_bias(source),
        "mlp_bias": _has_bias(source, "ffn_up"),
        "hidden_act": "relu2",
    }
    # The file has 1 + w, the checkpoint w.
    ends = ENDS | {"output_norm": renamed("model.norm", added=-1)}
    norms = {
        "attn_norm": renamed("input_layernorm", added=-1),
        "ffn_norm": renamed("post_attention_layernorm", added=-1),
    }
    return describe(source, "nemotron", "NemotronForCausalLM", config, ATTENTION | norms | _PLAIN, ends=ends)


def _command_r(source: Source) -> Model:
    config = decoder(source) | layer_norm(source)
    config |= {
        "logit_scale": source.number("logit_scale"),
        "use_qk_norm": source.has("blk.0.attn_q_norm.weight"),
        "attention_bias": _has_bias(source),
    }
    table = ATTENTION | GATED | {
        "attn_norm": renamed("input_layernorm"),
        "attn_q_norm": renamed("self_attn.q_norm", optional=True),
        "attn_k_norm": renamed("self_attn.k_norm", optional=True),
    }  # fmt: skip
    return describe(source, "cohere", "CohereForCausalLM", config, table)


def _cohere2(source: Source) -> Model:
    config = decoder(source) | layer_norm(source) | windows(source, every=4)
    config |= {"logit_scale": source.number("logit_scale"), "attention_bias": _has_bias(source)}
    table = ATTENTION | GATED | {"attn_norm": renamed("input_layernorm")}
    return describe(source, "cohere2", "Cohere2ForCausalLM", config, table)


def _glm4(source: Source) -> Model:
    config = decoder(source) | rms_norm(source)
    config |= {"rope_parameters": rotary(source, partial=True), "attention_bias": _has_bias(source)}
    table = ATTENTION | {
        "attn_norm": renamed("input_layernorm"),
        "post_attention_norm": renamed("post_self_attn_layernorm"),
        "ffn_norm": renamed("post_attention_layernorm"),
        "post_ffw_norm": renamed("post_mlp_layernorm"),
        "ffn_up": renamed("mlp.gate_up_proj"),
        "ffn_down": renamed("mlp.down_proj"),
    }
    return describe(source, "glm4", "Glm4ForCausalLM", config, table)


def _granitemoe(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | granite_multipliers(source)
    config |= experts_config(source, "num_local_experts") | {"attention_bias": _has_bias(source)}
    table = INTERLEAVED | NORMS | GRANITE_EXPERTS
    return describe(source, "granitemoe", "GraniteMoeForCausalLM", config, table)


#: By `general.architecture`.
LLAMA_LIKE: dict[str, Architecture] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "exaone4": _exaone4,
    "granite": _granite,
    "granitemoe": _granitemoe,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "nemotron": _nemotron,
    "command-r": _command_r,
    "cohere2": _cohere2,
    "glm4": _glm4,
}
