"""Qwen2-MoE, Qwen3-MoE and OLMoE, with experts that are branched and with experts that are gathered."""

from typing import Any

from tests.compiler.families.case import SIZES, WINDOW, Case
from trident_compiler.families.features import Feature

_EXPERTS = (Feature.EXPERTS,)
_SMALL: dict[str, Any] = {**SIZES, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
_SHARED: dict[str, Any] = {**_SMALL, "shared_expert_intermediate_size": 48}

CASES = [
    Case("qwen2_moe", "", {**_SHARED, "num_experts": 4}, mixture=True, features=_EXPERTS),
    Case(
        "qwen2_moe", "normalised, windows, no biases, some layers dense",
        {
            **_SHARED, "num_experts": 12, "norm_topk_prob": True, "qkv_bias": False, "decoder_sparse_step": 2,
            "mlp_only_layers": [3], "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3,
        },
        mixture=True, features=_EXPERTS,
    ),
    Case("qwen3_moe", "", {**_SMALL, "head_dim": 32, "num_experts": 16}, mixture=True, features=_EXPERTS),
    Case(
        "qwen3_moe", "normalised, biases, a window",
        {
            **_SMALL, "head_dim": 16, "num_experts": 4, "norm_topk_prob": True, "attention_bias": True,
            "use_sliding_window": True, "sliding_window": WINDOW,
        },
        mixture=True, features=_EXPERTS,
    ),
    Case("olmoe", "", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}, mixture=True, features=_EXPERTS),
    Case(
        "olmoe", "clipped, normalised",
        {**SIZES, "num_experts": 16, "num_experts_per_tok": 4, "clip_qkv": 0.5, "norm_topk_prob": True},
        mixture=True, features=_EXPERTS,
    ),
]  # fmt: skip
