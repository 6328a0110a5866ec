"""StarCoder2."""

from tests.compiler.families.case import SIZES, WINDOW, Case

CASES = [
    Case("starcoder2", "", {**SIZES, "sliding_window": WINDOW}),
    Case("starcoder2", "without biases", {
        **SIZES, "use_bias": False, "hidden_act": "gelu", "tie_word_embeddings": False,
    }),
]  # fmt: skip
