"""Jais 2."""

from tests.compiler.families.case import SIZES, Case

CASES = [
    Case("jais2"),
    Case(
        "jais2",
        "no biases and a tied head",
        {**SIZES, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True},
    ),
]
