"""Persimmon."""

from tests.compiler.families.case import SIZES, Case

CASES = [
    Case("persimmon"),
    Case("persimmon", "without norms of heads", {**SIZES, "qk_layernorm": False, "hidden_act": "gelu"}),
]
