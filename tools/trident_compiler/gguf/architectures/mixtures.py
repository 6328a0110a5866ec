"""Decoders with experts.

Owns what the keys of each mean for config.json, and how stacks of experts become the tensors of a checkpoint. Never
reads a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trident_compiler.gguf.architectures.model import (
    ATTENTION,
    NORMS,
    QK_NORMS,
    Architecture,
    Model,
    describe,
)
from trident_compiler.gguf.configs import decoder, rms_norm
from trident_compiler.gguf.entries import Entry, Table, experts, renamed, stack_shape
from trident_compiler.gguf.layout import Part, Rows, Source, Target

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


#: By `general.architecture`.
MIXTURES: dict[str, Architecture] = {
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "olmoe": _olmoe,
    "gpt-oss": _gpt_oss,
}
