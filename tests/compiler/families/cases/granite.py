"""Granite, with windows or without, and HyperCLOVA X."""

from tests.compiler.families.case import SIZES, WINDOW, Case
from trident_compiler.families.features import Feature

FACTORS = {
    **SIZES,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
    "logits_scaling": 8.0,
}
CASES = [
    Case("granite", "", FACTORS),
    Case(
        "granite",
        "no factors but biases",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    Case("granite_swa", "", {**FACTORS, "sliding_window": WINDOW}, features=(Feature.SINKS,)),
    Case(
        "granite_swa",
        "bases of layers",
        {
            **FACTORS,
            "sliding_window": WINDOW,
            "layer_rope_theta": [10000.0, 0, 500.0, 10000.0],
            "attention_bias": True,
            "mlp_bias": True,
        },
        features=(Feature.SINKS,),
    ),
    Case("hyperclovax", "", FACTORS),
    Case("hyperclovax", "no factors and no norms after branches", {**SIZES, "use_post_norm": False}),
]
