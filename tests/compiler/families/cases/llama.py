"""Llama 2 and 3, Mistral, Qwen2, Qwen3."""

from tests.compiler.families.case import SIZES, WINDOW, Case

CASES = [
    Case("llama"),
    Case("llama", "biases and a tied head", {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    Case("mistral", "", {**SIZES, "sliding_window": WINDOW}),
    Case("qwen2"),
    Case("qwen3", "", {**SIZES, "head_dim": 32}),
]  # fmt: skip
