"""GPT-Neo."""

from tests.compiler.families.case import WINDOW, Case

_SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 256,
    "window_size": WINDOW, "attention_types": [[["global", "local"], 2]],
}  # fmt: skip

CASES = [
    Case("gpt_neo", "", _SIZES),
    Case("gpt_neo", "windows first", {
        **_SIZES, "intermediate_size": 96, "attention_types": [[["local"], 3], [["global"], 1]],
        "tie_word_embeddings": False,
    }),
]  # fmt: skip
