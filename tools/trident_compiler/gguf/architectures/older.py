"""Decoders with names of their own: GPT-2 and those that followed it, Bloom, Falcon, MPT and Phi.

Owns what the keys of each mean for config.json, and how queries, keys and values lie in one tensor. Never reads a
value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trident_compiler.gguf.architectures.model import Architecture, Model, describe
from trident_compiler.gguf.configs import decoder, head_dim, layer_norm, rms_norm, rotary
from trident_compiler.gguf.entries import Table, renamed, reordered, split, transposed
from trident_compiler.gguf.layout import Indices, Source

_GPT_ENDS: Table = {
    "token_embd": renamed("transformer.wte"),
    "position_embd": renamed("transformer.wpe"),
    "output_norm": renamed("transformer.ln_f"),
    "output": renamed("lm_head", optional=True),
}


def _gpt_config(source: Source) -> dict[str, Any]:
    return layer_norm(source, "layer_norm_epsilon") | {
        "vocab_size": source.tensor("token_embd.weight").shape[0],
        "n_positions": source.integer("context_length"),
        "n_embd": source.integer("embedding_length"),
        "n_inner": source.integer("feed_forward_length"),
        "n_layer": source.integer("block_count"),
        "n_head": source.integer("attention.head_count"),
        "activation_function": "gelu_pytorch_tanh",
        "tie_word_embeddings": not source.has("output.weight"),
    }


def _gpt2(source: Source) -> Model:
    table = {
        "attn_norm": renamed("ln_1"),
        "attn_qkv": transposed("attn.c_attn"),
        "attn_output": transposed("attn.c_proj"),
        "ffn_norm": renamed("ln_2"),
        "ffn_up": transposed("mlp.c_fc"),
        "ffn_down": transposed("mlp.c_proj"),
    }
    config = _gpt_config(source) | {"activation_function": "gelu_new"}
    return describe(source, "gpt2", "GPT2LMHeadModel", config, table, ends=_GPT_ENDS, prefix="transformer.h")


def _starcoder(source: Source) -> Model:
    table = {
        "attn_norm": renamed("ln_1"),
        "attn_qkv": renamed("attn.c_attn"),
        "attn_output": renamed("attn.c_proj"),
        "ffn_norm": renamed("ln_2"),
        "ffn_up": renamed("mlp.c_fc"),
        "ffn_down": renamed("mlp.c_proj"),
    }
    config = _gpt_config(source) | {"multi_query": source.integer("attention.head_count_kv", 1) == 1}
    return describe(
        source, "gpt_bigcode", "GPTBigCodeForCausalLM", config, table, ends=_GPT_ENDS, prefix="transformer.h"
    )


def _by_head(source: Source, num_rows: int) -> Indices | None:
    """Return the order that puts each head's queries, keys and values together; the file has all queries first."""
    heads, size = source.integer("attention.head_count"), head_dim(source)
    if 3 * heads * size != num_rows:
        return None
    return np.arange(num_rows).reshape(3, heads, size).swapaxes(0, 1).ravel()


def _gptneox(source: Source) -> Model:
    ends = {
        "token_embd": renamed("gpt_neox.embed_in"),
        "output_norm": renamed("gpt_neox.final_layer_norm"),
        "output": renamed("embed_out", optional=True),
    }
    table = {
        "attn_norm": renamed("input_layernorm"),
        "attn_qkv": reordered("attention.query_key_value", _by_head),
        "attn_output": renamed("attention.dense"),
        "ffn_norm": renamed("post_attention_layernorm"),
        "ffn_up": renamed("mlp.dense_h_to_4h"),
        "ffn_down": renamed("mlp.dense_4h_to_h"),
    }
    config = decoder(source) | layer_norm(source) | {"rope_parameters": rotary(source, partial=True)}
    config |= {
        "use_parallel_residual": source.flag("use_parallel_residual", default=True),
        "attention_bias": source.has("blk.0.attn_qkv.bias"),
        "hidden_act": "gelu",
    }
    return describe(source, "gpt_neox", "GPTNeoXForCausalLM", config, table, ends=ends, prefix="gpt_neox.layers")


def _bloom(source: Source) -> Model:
    ends = {
        "token_embd": renamed("transformer.word_embeddings"),
        "token_embd_norm": renamed("transformer.word_embeddings_layernorm"),
        "output_norm": renamed("transformer.ln_f"),
        "output": renamed("lm_head", optional=True),
    }
    table = {
        "attn_norm": renamed("input_layernorm"),
        "attn_qkv": reordered("self_attention.query_key_value", _by_head),
        "attn_output": renamed("self_attention.dense"),
        "ffn_norm": renamed("post_attention_layernorm"),
        "ffn_up": renamed("mlp.dense_h_to_4h"),
        "ffn_down": renamed("mlp.dense_4h_to_h"),
    }
    config = layer_norm(source, "layer_norm_epsilon") | {
        "vocab_size": source.tensor("token_embd.weight").shape[0],
        "hidden_size": source.integer("embedding_length"),
        "n_layer": source.integer("block_count"),
        "n_head": source.integer("attention.head_count"),
        "seq_length": source.integer("context_length"),
        "tie_word_embeddings": not source.has("output.weight"),
    }
    return describe(source, "bloom", "BloomForCausalLM", config, table, ends=ends, prefix="transformer.h")


def _by_group(source: Source, num_rows: int) -> Indices | None:
    """Return the order that puts each key head's queries, key and value together; the file has all queries first."""
    heads, size = source.integer("attention.head_count"), head_dim(source)
    groups = source.integer("attention.head_count_kv", heads)
    if (heads + 2 * groups) * size != num_rows or heads % groups:
        return None
    rows = np.arange(num_rows).reshape(-1, size)
    queries = rows[:heads].reshape(groups, -1, size)
    keys, values = rows[heads : heads + groups, None], rows[heads + groups :, None]
    grouped: Indices = np.concatenate([queries, keys, values], axis=1)
    return grouped.ravel()


def _falcon(source: Source) -> Model:
    ends = {
        "token_embd": renamed("transformer.word_embeddings"),
        "output_norm": renamed("transformer.ln_f"),
        "output": renamed("lm_head", optional=True),
    }
    two_norms = source.has("blk.0.attn_norm_2.weight")
    table = {
        "attn_norm": renamed("ln_mlp" if two_norms else "input_layernorm"),
        "attn_norm_2": renamed("ln_attn", optional=True),
        "attn_qkv": reordered("self_attention.query_key_value", _by_group),
        "attn_output": renamed("self_attention.dense"),
        "ffn_up": renamed("mlp.dense_h_to_4h"),
        "ffn_down": renamed("mlp.dense_4h_to_h"),
    }
    shared = decoder(source)
    groups = shared["num_key_value_heads"]
    config = layer_norm(source, "layer_norm_epsilon") | {
        key: value
        for key, value in shared.items()
        if key not in {"intermediate_size", "num_key_value_heads", "head_dim"}
    }
    config |= {
        "ffn_hidden_size": source.integer("feed_forward_length"),
        "num_kv_heads": groups,
        "new_decoder_architecture": groups > 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": groups == 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": source.has("blk.0.attn_qkv.bias"),
    }
    return describe(source, "falcon", "FalconForCausalLM", config, table, ends=ends, prefix="transformer.h")


def _mpt(source: Source) -> Model:
    ends = {
        "token_embd": renamed("transformer.wte"),
        "output_norm": renamed("transformer.norm_f"),
        "output": renamed("lm_head", optional=True),
    }
    table = {
        "attn_norm": renamed("norm_1"),
        "attn_qkv": renamed("attn.Wqkv"),
        "attn_output": renamed("attn.out_proj"),
        "ffn_norm": renamed("norm_2"),
        "ffn_up": renamed("ffn.up_proj"),
        "ffn_down": renamed("ffn.down_proj"),
    }
    hidden_size, clips = source.integer("embedding_length"), source.has_key("attention.clamp_kqv")
    bias = source.number("attention.max_alibi_bias")
    config = layer_norm(source, "layer_norm_epsilon") | {
        "vocab_size": source.tensor("token_embd.weight").shape[0],
        "d_model": hidden_size,
        "n_heads": source.integer("attention.head_count"),
        "n_layers": source.integer("block_count"),
        "expansion_ratio": source.integer("feed_forward_length") // hidden_size,
        "max_seq_len": source.integer("context_length"),
        "no_bias": True,
        "tie_word_embeddings": not source.has("output.weight"),
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(bias),
            "clip_qkv": source.number("attention.clamp_kqv") if clips else None,
        },
    }
    return describe(source, "mpt", "MptForCausalLM", config, table, ends=ends, prefix="transformer.blocks")


def _qkv_sizes(source: Source) -> tuple[int, int, int]:
    heads, size = source.integer("attention.head_count"), head_dim(source)
    key_size = source.integer("attention.head_count_kv", heads) * size
    return heads * size, key_size, key_size


def _phi2(source: Source) -> Model:
    ends = {
        "token_embd": renamed("model.embed_tokens"),
        "output_norm": renamed("model.final_layernorm"),
        "output": renamed("lm_head"),
    }
    table = {
        "attn_norm": renamed("input_layernorm"),
        "attn_qkv": split(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), _qkv_sizes),
        "attn_q": renamed("self_attn.q_proj", optional=True),
        "attn_k": renamed("self_attn.k_proj", optional=True),
        "attn_v": renamed("self_attn.v_proj", optional=True),
        "attn_output": renamed("self_attn.dense"),
        "ffn_up": renamed("mlp.fc1"),
        "ffn_down": renamed("mlp.fc2"),
    }
    config = decoder(source) | layer_norm(source) | {"rope_parameters": rotary(source, partial=True)}
    return describe(source, "phi", "PhiForCausalLM", config, table, ends=ends)


def _phi3(source: Source) -> Model:
    table = {
        "attn_norm": renamed("input_layernorm"),
        "attn_qkv": renamed("self_attn.qkv_proj"),
        "attn_output": renamed("self_attn.o_proj"),
        "ffn_norm": renamed("post_attention_layernorm"),
        "ffn_up": renamed("mlp.gate_up_proj"),
        "ffn_down": renamed("mlp.down_proj"),
    }
    original = source.integer("rope.scaling.original_context_length", source.integer("context_length"))
    config = decoder(source) | rms_norm(source) | {"rope_parameters": rotary(source, partial=True)}
    config |= {
        "original_max_position_embeddings": original,
        "sliding_window": source.integer("attention.sliding_window", 0, least=0) or None,
        "pad_token_id": None,
    }
    return describe(source, "phi3", "Phi3ForCausalLM", config, table)


#: By `general.architecture`.
OLDER: dict[str, Architecture] = {
    "gpt2": _gpt2,
    "starcoder": _starcoder,
    "gptneox": _gptneox,
    "bloom": _bloom,
    "falcon": _falcon,
    "mpt": _mpt,
    "phi2": _phi2,
    "phi3": _phi3,
}
