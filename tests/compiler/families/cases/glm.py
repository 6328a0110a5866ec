"""GLM and GLM-4."""

from tests.compiler.families.case import SIZES, Case

HEADS = {**SIZES, "head_dim": 32}
CASES = [
    Case("glm", "", HEADS),
    Case("glm", "whole heads rotated without biases", {**HEADS, "partial_rotary_factor": 1.0, "attention_bias": False}),
    Case("glm4", "", HEADS),
]
