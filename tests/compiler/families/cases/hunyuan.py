"""HunYuan, dense."""

from tests.compiler.families.case import SIZES, Case

HEADS = {**SIZES, "head_dim": 32}
CASES = [
    Case("hunyuan_v1_dense", "", {**HEADS, "attention_bias": True}),
    Case(
        "hunyuan_v1_dense",
        "stretched base",
        {**HEADS, "rope_parameters": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0, "rope_theta": 10000.0}},
    ),
]
