"""Granite and HyperCLOVA X."""

from tests.compiler.families.case import SIZES, Case

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
    Case("hyperclovax", "", FACTORS),
    Case("hyperclovax", "no factors and no norms after branches", {**SIZES, "use_post_norm": False}),
]
