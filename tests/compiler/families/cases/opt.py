"""OPT."""

from tests.compiler.families.case import Case

_SIZES = {
    "vocab_size": 96, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip

CASES = [
    Case("opt", "", _SIZES),
    Case("opt", "norms behind, narrow embeddings", {
        **_SIZES, "do_layer_norm_before": False, "word_embed_proj_dim": 32, "activation_function": "gelu",
    }),
    Case("opt", "norms without weights", {
        **_SIZES, "layer_norm_elementwise_affine": False, "enable_bias": False, "_remove_final_layer_norm": True,
        "tie_word_embeddings": False,
    }),
]  # fmt: skip
