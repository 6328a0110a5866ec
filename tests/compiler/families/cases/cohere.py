"""Cohere and Cohere 2."""

from tests.compiler.families.case import SIZES, WINDOW, Case

CASES = [
    Case("cohere"),
    Case(
        "cohere",
        "norms of heads biases and a head of its own",
        {**SIZES, "use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False},
        factor=2.0,
    ),
    Case("cohere2", "", {**SIZES, "sliding_window": WINDOW}),
    Case(
        "cohere2",
        "biases",
        {
            **SIZES,
            "sliding_window": WINDOW,
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
]
