"""gpt-oss, with experts that are branched and with experts that are gathered."""

from typing import Any

from tests.compiler.families.case import SIZES, WINDOW, Case
from trident_compiler.families.features import Feature

_NEEDS = (Feature.SINKS, Feature.EXPERTS)
_SIZES: dict[str, Any] = {**SIZES, "head_dim": 16, "sliding_window": WINDOW, "num_experts_per_tok": 2}

CASES = [
    Case("gpt_oss", "", {**_SIZES, "num_local_experts": 4}, mixture=True, features=_NEEDS),
    Case(
        "gpt_oss", "sixteen experts, a lower bound, plain rotary",
        {
            **_SIZES, "num_local_experts": 16, "swiglu_limit": 0.5, "swiglu_alpha": 1.5, "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        mixture=True, features=_NEEDS,
    ),
]  # fmt: skip
