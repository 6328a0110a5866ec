"""GPT-NeoX."""

from tests.compiler.families.case import SIZES, Case

_HALF = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}

CASES = [
    Case("gpt_neox"),
    Case("gpt_neox", "one branch behind the other", {
        **SIZES, "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new",
        "rope_parameters": _HALF, "tie_word_embeddings": True,
    }),
]  # fmt: skip
