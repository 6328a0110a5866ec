"""Phi 1, 1.5 and 2."""

from tests.compiler.families.case import SIZES, Case

_ALL_HEADS = {**SIZES, "num_key_value_heads": None}

CASES = [
    Case("phi", "", _ALL_HEADS),
    Case("phi", "norms of heads", {**SIZES, "qk_layernorm": True, "partial_rotary_factor": 0.25, "hidden_act": "relu"}),
]
