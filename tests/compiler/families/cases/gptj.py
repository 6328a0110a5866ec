"""GPT-J and CodeGen."""

from tests.compiler.families.case import Case

_SIZES = {"vocab_size": 96, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 8}

CASES = [
    Case("gptj", "", _SIZES),
    Case("gptj", "whole heads", {**_SIZES, "rotary_dim": 32, "n_inner": 96, "activation_function": "gelu"}),
    Case("codegen", "", _SIZES),
    Case("codegen", "two heads in each group", {**_SIZES, "n_head": 8}),
]  # fmt: skip
