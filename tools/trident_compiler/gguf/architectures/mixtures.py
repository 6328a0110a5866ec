"""Decoders with experts.

Owns what the keys of each mean for config.json, and how stacks of experts become the tensors of a checkpoint. Never
reads a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
from trident_compiler.gguf.configs import decoder, rms_norm
from trident_compiler.gguf.layout import (
    Entry,
    Part,
    Rows,
    Source,
    Table,
    Target,
    experts,
    renamed,
    stack_shape,
)

#: Mixtral's names.
SPARSE: Table = {
    "ffn_gate_inp": renamed("block_sparse_moe.gate"),
    "ffn_gate_exps": experts("block_sparse_moe.experts.{}.w1"),
    "ffn_up_exps": experts("block_sparse_moe.experts.{}.w3"),
    "ffn_down_exps": experts("block_sparse_moe.experts.{}.w2"),
}
#: What most others call them.
EXPERTS: Table = {
    "ffn_gate_inp": renamed("mlp.gate"),
    "ffn_gate_exps": experts("mlp.experts.{}.gate_proj"),
    "ffn_up_exps": experts("mlp.experts.{}.up_proj"),
    "ffn_down_exps": experts("mlp.experts.{}.down_proj"),
}


def experts_config(source: Source, count_key: str) -> dict[str, Any]:
    """Return the number of experts, by the name that the family has for it, and how many are active."""
    return {
        count_key: source.integer("expert_count"),
        "num_experts_per_tok": source.integer("expert_used_count"),
    }


def expert_width(source: Source, layer: int = 0) -> int:
    """Return the inner width of an expert."""
    return source.integer("expert_feed_forward_length", stack_shape(source, f"blk.{layer}.ffn_down_exps.weight")[2])


def _gate_and_up() -> Entry:
    """Return the entry of stacks of gates and of ups that the checkpoint holds as one stack, gates before ups."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        ups = stored.replace("gate", "up")
        num_experts, num_rows, row_length = stack_shape(source, stored)
        if stack_shape(source, ups) != (num_experts, num_rows, row_length):
            raise source.refuse(ups, f"must have the shape of {stored}")
        parts = [
            Part((Rows(tensor, range(expert * num_rows, (expert + 1) * num_rows)),))
            for expert in range(num_experts)
            for tensor in (stored, ups)
        ]
        yield Target(name, (num_experts, 2 * num_rows, row_length), tuple(parts))

    return Entry("block_sparse_moe.input_linear", make)


#: GraniteMoe's names.
GRANITE_EXPERTS: Table = {
    "ffn_gate_inp": renamed("block_sparse_moe.router.layer"),
    "ffn_gate_exps": _gate_and_up(),
    "ffn_down_exps": renamed("block_sparse_moe.output_linear"),
}


def _row_vector(target: str) -> Entry:
    """Return the entry of a vector that the checkpoint holds as a matrix of one row."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        yield Target(name, (1, source.tensor(stored).size), (Part((Rows(stored, flat=True),)),))

    return Entry(target, make)


def _qwen2moe(source: Source) -> Model:
    shared = source.tensor("blk.0.ffn_down_shexp.weight").row_length
    config = decoder(source) | rms_norm(source) | experts_config(source, "num_experts")
    config |= {
        "moe_intermediate_size": expert_width(source),
        "shared_expert_intermediate_size": source.integer("expert_shared_feed_forward_length", shared),
        "norm_topk_prob": source.flag("expert_weights_norm"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }
    table = ATTENTION | NORMS | EXPERTS | {
        "ffn_gate_inp_shexp": _row_vector("mlp.shared_expert_gate"),
        "ffn_gate_shexp": renamed("mlp.shared_expert.gate_proj"),
        "ffn_up_shexp": renamed("mlp.shared_expert.up_proj"),
        "ffn_down_shexp": renamed("mlp.shared_expert.down_proj"),
    }  # fmt: skip
    return describe(source, "qwen2_moe", "Qwen2MoeForCausalLM", config, table)


def _qwen3moe(source: Source) -> Model:
    config = decoder(source) | rms_norm(source) | experts_config(source, "num_experts")
    config |= {
        "moe_intermediate_size": expert_width(source),
        "norm_topk_prob": source.flag("expert_weights_norm", default=True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }
    return describe(source, "qwen3_moe", "Qwen3MoeForCausalLM", config, ATTENTION | NORMS | QK_NORMS | EXPERTS)


def _olmoe(source: Source) -> Model:
    clips = source.has_key("attention.clamp_kqv")
    config = decoder(source) | rms_norm(source) | experts_config(source, "num_experts")
    config |= {
        "norm_topk_prob": source.flag("expert_weights_norm"),
        "clip_qkv": source.number("attention.clamp_kqv") if clips else None,
    }
    return describe(source, "olmoe", "OlmoeForCausalLM", config, ATTENTION | NORMS | QK_NORMS | EXPERTS)


def _stacked_pairs() -> Entry:
    """Return the entry of gates and ups that the checkpoint holds column by column, as `[experts, in, out]`."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        ups = stored.replace("gate", "up")
        if source.tensor(ups).shape != source.tensor(stored).shape:
            raise source.refuse(ups, f"must have the shape of {stored}")
        if name.endswith(".bias"):
            num_experts, num_rows = source.tensor(stored).shape
            part = Part((Rows(stored, flat=True), Rows(ups, flat=True)), interleaved=True)
            yield Target(_joined_name(name), (num_experts, 2 * num_rows), (part,))
            return
        num_experts, num_rows, row_length = stack_shape(source, stored)
        parts = []
        for expert in range(num_experts):
            of_expert = range(expert * num_rows, (expert + 1) * num_rows)
            both = (Rows(stored, of_expert), Rows(ups, of_expert))
            parts.append(Part(both, interleaved=True, transposed=True))
        yield Target(_joined_name(name), (num_experts, row_length, 2 * num_rows), tuple(parts))

    return Entry("mlp.experts.gate_up_proj", make)


def _joined_name(name: str) -> str:
    """Return the name of a parameter that is no module's weight or bias."""
    return name.removesuffix(".weight") if name.endswith(".weight") else f"{name.removesuffix('.bias')}_bias"


def _stacked_transposed() -> Entry:
    """Return the entry of a stack that the checkpoint holds as `[experts, in, out]`."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        if name.endswith(".bias"):
            yield Target(_joined_name(name), source.tensor(stored).shape, (Part((Rows(stored),)),))
            return
        num_experts, num_rows, row_length = stack_shape(source, stored)
        parts = [
            Part((Rows(stored, range(expert * num_rows, (expert + 1) * num_rows)),), transposed=True)
            for expert in range(num_experts)
        ]
        yield Target(_joined_name(name), (num_experts, row_length, num_rows), tuple(parts))

    return Entry("mlp.experts.down_proj", make)


def _bare(target: str) -> Entry:
    """Return the entry of a vector that is no module's weight."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        yield Target(name.removesuffix(".weight"), source.tensor(stored).shape, (Part((Rows(stored),)),))

    return Entry(target, make)


def _gpt_oss(source: Source) -> Model:
    num_layers = source.integer("block_count")
    config = decoder(source) | rms_norm(source) | experts_config(source, "num_local_experts")
    rotation = config["rope_parameters"]
    if rotation["rope_type"] == "yarn":
        # Its models were trained without rounding the ends of the ramp; files of other architectures mean rounded ones.
        rotation = {"beta_fast": 32.0, "beta_slow": 1.0, **rotation, "truncate": False}
    config |= {
        "intermediate_size": expert_width(source),
        "attention_bias": source.has("blk.0.attn_q.bias"),
        "sliding_window": source.integer("attention.sliding_window"),
        "layer_types": [("sliding_attention", "full_attention")[layer % 2] for layer in range(num_layers)],
        "rope_parameters": rotation,
    }
    table = ATTENTION | {
        "attn_norm": renamed("input_layernorm"),
        "post_attention_norm": renamed("post_attention_layernorm"),
        "attn_sinks": _bare("self_attn.sinks"),
        "ffn_gate_inp": renamed("mlp.router"),
        "ffn_gate_exps": _stacked_pairs(),
        "ffn_down_exps": _stacked_transposed(),
    }
    return describe(source, "gpt_oss", "GptOssForCausalLM", config, table)


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
    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        target = f"{name.removesuffix('.bias')}.e_score_correction_bias"
        yield Target(target, source.tensor(stored).shape, (Part((Rows(stored),)),))

    return Entry("mlp.gate", make, optional=True)


_SIGMOID = 2


def _deepseek2(source: Source) -> Model:
    rank, rotated = source.integer("attention.kv_lora_rank"), source.integer("rope.dimension_count")
    # Older files give the sizes of the expanded heads, newer ones those of the latent space, and both in keys of their own.
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
    return describe(source, *names, config, layer, ends=ENDS)


def _with_scale(source: Source, rotation: dict[str, Any]) -> dict[str, Any]:
    """Return the rotation with the scale of scores that comes with it; the file has a tenth of it."""
    if rotation["rope_type"] != "yarn" or not source.has_key("rope.scaling.yarn_log_multiplier"):
        return rotation
    scale = round(source.number("rope.scaling.yarn_log_multiplier") * 10, 6)
    return rotation | {"mscale": scale, "mscale_all_dim": scale}


#: By `general.architecture`.
MIXTURES: dict[str, Architecture] = {
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "olmoe": _olmoe,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
}
