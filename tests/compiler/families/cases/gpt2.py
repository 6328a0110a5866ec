"""GPT-2 and GPT-BigCode."""

from tests.compiler.families.case import Case

_SIZES = {"vocab_size": 96, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}

CASES = [
    Case("gpt2", "", _SIZES),
    Case("gpt2", "an own head and other scales", {
        **_SIZES, "n_inner": 96, "activation_function": "gelu", "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False,
    }),
    Case("gpt_bigcode", "", _SIZES),
    Case("gpt_bigcode", "keys and values in every head", {**_SIZES, "multi_query": False, "scale_attn_weights": False}),
]  # fmt: skip
