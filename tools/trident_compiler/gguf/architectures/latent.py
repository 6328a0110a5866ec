"""Decoders with attention in a latent space.

Owns what their keys mean for config.json, and how the ways out of the latent space lie in a file. Never reads a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trident_compiler.gguf.architectures.mixtures import EXPERTS, expert_width, experts_config
from trident_compiler.gguf.architectures.model import GATED, NORMS, Architecture, Model, describe
from trident_compiler.gguf.configs import decoder, rms_norm
from trident_compiler.gguf.entries import Entry, Table, renamed
from trident_compiler.gguf.layout import Part, Rows, Source, Target


def _keys_and_values() -> Entry:
    """Return the entry of the latent space's ways out: keys of each head, transposed, then its values."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        keys, values = source.tensor(stored), source.tensor(stored.replace("attn_k_b", "attn_v_b"))
        heads = source.integer("attention.head_count")
        shapes = keys.shape, values.shape
        if len(shapes[0]) != 3 or len(shapes[1]) != 3 or not shapes[0][0] == shapes[1][0] == heads:
            raise source.refuse(stored, f"must be a stack of {heads} matrices, as {values.name}")
        _, rank, key_size = keys.shape
        value_size = values.shape[1]
        if values.shape[2] != rank:
            raise source.refuse(values.name, f"its rows must have {rank} values")
        parts = []
        for head in range(heads):
            parts.append(Part((Rows(stored, range(head * rank, (head + 1) * rank)),), transposed=True))
            parts.append(Part((Rows(values.name, range(head * value_size, (head + 1) * value_size)),)))
        yield Target(name, (heads * (key_size + value_size), rank), tuple(parts))

    return Entry("self_attn.kv_b_proj", make, optional=True)


_LATENT: Table = NORMS | {
    "attn_q": renamed("self_attn.q_proj", optional=True),
    "attn_q_a": renamed("self_attn.q_a_proj", optional=True),
    "attn_q_a_norm": renamed("self_attn.q_a_layernorm", optional=True),
    "attn_q_b": renamed("self_attn.q_b_proj", optional=True),
    "attn_kv_a_mqa": renamed("self_attn.kv_a_proj_with_mqa"),
    "attn_kv_a_norm": renamed("self_attn.kv_a_layernorm"),
    "attn_kv_b": renamed("self_attn.kv_b_proj", optional=True),
    "attn_k_b": _keys_and_values(),
    "attn_output": renamed("self_attn.o_proj"),
}
_SHARED: Table = {
    "ffn_gate_shexp": renamed("mlp.shared_experts.gate_proj", optional=True),
    "ffn_up_shexp": renamed("mlp.shared_experts.up_proj", optional=True),
    "ffn_down_shexp": renamed("mlp.shared_experts.down_proj", optional=True),
}


def _choice_bias() -> Entry:
    """Return the entry of what is added to scores where experts are chosen, and not to their weights."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        target = f"{name.removesuffix('.bias')}.e_score_correction_bias"
        yield Target(target, source.tensor(stored).shape, (Part((Rows(stored),)),))

    return Entry("mlp.gate", make, optional=True)


_SIGMOID = 2


def _deepseek2(source: Source) -> Model:
    rank, rotated = source.integer("attention.kv_lora_rank"), source.integer("rope.dimension_count")
    # Older files give the sizes of the expanded heads, newer ones those of the latent space and, by these keys, both.
    key_size = source.integer("attention.key_length_mla", source.integer("attention.key_length"))
    value_size = source.integer("attention.value_length_mla", source.integer("attention.value_length"))
    # Older files do not say how experts are chosen; a bias on the choice comes with the sigmoid alone.
    sigmoid = source.integer("expert_gating_func", 1) == _SIGMOID or any(
        name.endswith(".exp_probs_b.bias") for name in source.file.tensors
    )
    groups = source.integer("expert_group_count", 1)
    num_dense = source.integer("leading_dense_block_count", 0, least=0)
    num_layers = source.integer("block_count")
    config = decoder(source) | rms_norm(source) | experts_config(source, "n_routed_experts")
    del config["head_dim"]
    config |= {
        "num_key_value_heads": source.integer("attention.head_count"),
        "kv_lora_rank": rank,
        "q_lora_rank": source.integer("attention.q_lora_rank") if source.has_key("attention.q_lora_rank") else None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key_size - rotated,
        "v_head_dim": value_size,
        "n_shared_experts": source.integer("expert_shared_count", 0, least=0) or None,
        "moe_intermediate_size": expert_width(source, min(num_dense, num_layers - 1)),
        "first_k_dense_replace": num_dense,
        "routed_scaling_factor": source.number("expert_weights_scale", 1.0),
        "norm_topk_prob": source.flag("expert_weights_norm"),
        "n_group": groups,
        "topk_group": source.integer("expert_group_used_count", 1),
        "rope_parameters": _with_scale(source, config["rope_parameters"]),
    }
    if not sigmoid:
        config["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    sparse = EXPERTS | _SHARED | {"exp_probs_b": _choice_bias()}

    def layer(number: int) -> Table:
        return _LATENT | (GATED if number < num_dense else sparse)

    names = ("deepseek_v3", "DeepseekV3ForCausalLM") if sigmoid else ("deepseek_v2", "DeepseekV2ForCausalLM")
    return describe(source, *names, config, layer)


def _with_scale(source: Source, rotation: dict[str, Any]) -> dict[str, Any]:
    """Return the rotation with the scale of scores that comes with it; the file has a tenth of it."""
    if rotation["rope_type"] != "yarn" or not source.has_key("rope.scaling.yarn_log_multiplier"):
        return rotation
    scale = round(source.number("rope.scaling.yarn_log_multiplier") * 10, 6)
    return rotation | {"mscale": scale, "mscale_all_dim": scale}


#: By `general.architecture`.
LATENT: dict[str, Architecture] = {"deepseek2": _deepseek2}
