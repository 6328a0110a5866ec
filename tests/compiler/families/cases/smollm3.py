"""SmolLM3."""

from tests.compiler.families.case import SIZES, WINDOW, Case

CASES = [
    Case("smollm3"),
    Case(
        "smollm3",
        "windows and biases",
        {
            **SIZES,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "no_rope_layers": [0, 1, 1, 0],
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
]
