"""Gemma's architectures.

Owns what their keys mean for config.json, and the names of their norms. Never reads a value.
"""

from __future__ import annotations

from typing import Any

from trident_compiler.gguf.architectures.model import ATTENTION, ENDS, GATED, Architecture, Model, describe
from trident_compiler.gguf.configs import decoder, head_dim, rms_norm, rotary
from trident_compiler.gguf.entries import Table, renamed
from trident_compiler.gguf.layout import Source

#: The file has 1 + w, the checkpoint w.
_ENDS: Table = ENDS | {"output_norm": renamed("model.norm", added=-1)}
_FOUR_NORMS: Table = {
    "attn_norm": renamed("input_layernorm", added=-1),
    "post_attention_norm": renamed("post_attention_layernorm", added=-1),
    "ffn_norm": renamed("pre_feedforward_layernorm", added=-1),
    "post_ffw_norm": renamed("post_feedforward_layernorm", added=-1),
}
#: The layers of the largest model of each generation, whose scale of attention is another; the file does not say so.
_GEMMA2_27B, _GEMMA3_27B = 46, 62
_LOCAL_THETA, _GEMMA3_PATTERN = 10000.0, 6


def _decoder(source: Source) -> dict[str, Any]:
    return decoder(source) | rms_norm(source) | {"hidden_activation": "gelu_pytorch_tanh"}


def _gemma(source: Source) -> Model:
    norms = {
        "attn_norm": renamed("input_layernorm", added=-1),
        "ffn_norm": renamed("post_attention_layernorm", added=-1),
    }
    return describe(source, "gemma", "GemmaForCausalLM", _decoder(source), ATTENTION | norms | GATED, ends=_ENDS)


def _scalar(source: Source, widest: int) -> int:
    """Return the size whose root divides the scores: a head's, or in the largest model the hidden size's share."""
    if source.integer("block_count") == widest:
        return source.integer("embedding_length") // source.integer("attention.head_count")
    return head_dim(source)


def _gemma2(source: Source) -> Model:
    config = _decoder(source) | {
        "query_pre_attn_scalar": _scalar(source, _GEMMA2_27B),
        "sliding_window": source.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": source.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": source.number("final_logit_softcapping", 30.0),
    }
    return describe(source, "gemma2", "Gemma2ForCausalLM", config, ATTENTION | _FOUR_NORMS | GATED, ends=_ENDS)


def _gemma3(source: Source) -> Model:
    num_layers = source.integer("block_count")
    local = source.number("rope.freq_base_swa", _LOCAL_THETA)
    capped = source.has_key("final_logit_softcapping")
    kinds = source.flags("attention.sliding_window_pattern", num_layers) or [
        (layer + 1) % _GEMMA3_PATTERN != 0 for layer in range(num_layers)
    ]
    config = _decoder(source) | {
        "query_pre_attn_scalar": _scalar(source, _GEMMA3_27B),
        "sliding_window": source.integer("attention.sliding_window", 1024),
        "layer_types": ["sliding_attention" if kind else "full_attention" for kind in kinds],
        "final_logit_softcapping": source.number("final_logit_softcapping") if capped else None,
        "attn_logit_softcapping": None,
        "rope_parameters": {
            "full_attention": rotary(source),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
    norms = {
        "attn_q_norm": renamed("self_attn.q_norm", added=-1),
        "attn_k_norm": renamed("self_attn.k_norm", added=-1),
    }
    table = ATTENTION | _FOUR_NORMS | norms | GATED
    return describe(source, "gemma3_text", "Gemma3ForCausalLM", config, table, ends=_ENDS)


#: By `general.architecture`.
GEMMA: dict[str, Architecture] = {"gemma": _gemma, "gemma2": _gemma2, "gemma3": _gemma3}
