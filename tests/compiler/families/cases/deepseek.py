"""DeepSeek-V2 and V3, whose attention is absorbed, with few experts and with many."""

from typing import Any

from tests.compiler.families.case import SIZES, Case
from trident_compiler.families.features import Feature

_NEEDS = (Feature.VALUE_HEAD_DIM, Feature.HEAD_MATRICES, Feature.EXPERTS)
_SIZES: dict[str, Any] = {
    **SIZES, "num_hidden_layers": 3, "num_key_value_heads": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
}  # fmt: skip
_YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "mscale": 0.8, "mscale_all_dim": 0.6,
}  # fmt: skip

CASES = [
    Case(
        "deepseek_v2", "", {**_SIZES, "q_lora_rank": None, "n_routed_experts": 4},
        mixture=True, features=_NEEDS,
    ),
    Case(
        "deepseek_v2", "groups, latent queries, biases, yarn",
        {
            **_SIZES, "q_lora_rank": 24, "n_routed_experts": 16, "topk_method": "group_limited_greedy", "n_group": 4,
            "topk_group": 2, "routed_scaling_factor": 2.0, "attention_bias": True, "mlp_bias": False,
            "rope_parameters": _YARN,
        },
        mixture=True, features=_NEEDS,
    ),
    Case(
        "deepseek_v3", "", {**_SIZES, "q_lora_rank": 24, "n_routed_experts": 8, "n_group": 2, "topk_group": 1},
        mixture=True, features=_NEEDS,
    ),
    Case(
        "deepseek_v3", "sixteen experts in halves, yarn",
        {
            **_SIZES, "q_lora_rank": None, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "n_shared_experts": 2,
            "norm_topk_prob": False, "rope_interleave": False, "rope_parameters": _YARN,
        },
        mixture=True, features=_NEEDS,
    ),
]  # fmt: skip
