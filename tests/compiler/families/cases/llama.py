"""Llama 2 and 3, Mistral, Qwen2, Qwen3, and what differs from them by a row of a table."""

from tests.compiler.families.case import SIZES, WINDOW, Case

CASES = [
    Case("llama"),
    Case(
        "llama",
        "biases and a tied head",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    Case("arcee"),
    Case("arcee", "biases", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    Case("ernie4_5", "", {**SIZES, "head_dim": 16}),
    Case(
        "ernie4_5",
        "biases and a head of its own",
        {**SIZES, "head_dim": 32, "use_bias": True, "tie_word_embeddings": False},
    ),
    Case("helium", "", {**SIZES, "head_dim": 16}),
    Case("helium", "biases", {**SIZES, "head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    Case("internlm3", "", {**SIZES, "head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    Case("iquestcoder", "", {**SIZES, "head_dim": 32}),
    Case(
        "ministral",
        "",
        {**SIZES, "head_dim": 32, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    Case("mistral", "", {**SIZES, "sliding_window": WINDOW}),
    Case("qwen2"),
    Case("qwen2", "windows", {**SIZES, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    Case("qwen3", "", {**SIZES, "head_dim": 32}),
    Case("seed_oss", "", {**SIZES, "head_dim": 32, "attention_out_bias": True, "mlp_bias": True}),
]
