"""OLMo, OLMo 2 and OLMo 3."""

from tests.compiler.families.case import SIZES, WINDOW, Case

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CASES = [
    Case("olmo", "", {**SIZES, "clip_qkv": 2.0}),
    Case("olmo", "biases and a tied head", {**SIZES, "attention_bias": True, "tie_word_embeddings": True}),
    Case("olmo2"),
    Case("olmo2", "biases", {**SIZES, "attention_bias": True}),
    Case("olmo3", "", {**SIZES, "sliding_window": WINDOW}),
    Case(
        "olmo3",
        "scaled full layers",
        {
            **SIZES,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            },
        },
    ),
]
