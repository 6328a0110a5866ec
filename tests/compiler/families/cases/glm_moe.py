"""GLM-4 with experts and dots.1, with few experts and with many."""

from typing import Any

from tests.compiler.families.case import SIZES, WINDOW, Case
from trident_compiler.families.features import Feature

_EXPERTS = (Feature.EXPERTS,)
_SIZES: dict[str, Any] = {
    **SIZES, "moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_shared_experts": 2, "first_k_dense_replace": 1,
}  # fmt: skip

CASES = [
    Case("glm4_moe", "", {**_SIZES, "n_routed_experts": 4}, mixture=True, features=_EXPERTS),
    Case(
        "glm4_moe", "sixteen experts in groups, norms and biases",
        {
            **_SIZES, "head_dim": 32, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "use_qk_norm": True,
            "attention_bias": True, "norm_topk_prob": False, "routed_scaling_factor": 1.5,
        },
        mixture=True, features=_EXPERTS,
    ),
    Case("dots1", "", {**_SIZES, "n_routed_experts": 16}, mixture=True, features=_EXPERTS),
    Case(
        "dots1", "windows and biases",
        {
            **_SIZES, "n_routed_experts": 4, "attention_bias": True, "sliding_window": WINDOW, "max_window_layers": 2,
            "norm_topk_prob": True,
        },
        mixture=True, features=_EXPERTS,
    ),
]  # fmt: skip
