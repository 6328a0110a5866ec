"""Nemotron."""

from tests.compiler.families.case import SIZES, Case

CASES = [
    Case("nemotron"),
    Case("nemotron", "biases and wide heads", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
]
