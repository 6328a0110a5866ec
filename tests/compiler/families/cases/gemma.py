"""Gemma, Gemma 2, Gemma 3 and VaultGemma."""

from tests.compiler.families.case import SIZES, WINDOW, Case
from trident_compiler.families.features import Feature

HEADS = {**SIZES, "head_dim": 32}
WINDOWS = {**HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}
NO_CAP = {**WINDOWS, "attn_logit_softcapping": None, "final_logit_softcapping": 3.0}
CAPPED = (Feature.SOFT_CAP,)
CASES = [
    Case("gemma", "", HEADS),
    Case(
        "gemma",
        "biases and a head of its own",
        {**HEADS, "attention_bias": True, "tie_word_embeddings": False, "hidden_act": "gelu"},
    ),
    Case("gemma2", "", WINDOWS, features=CAPPED),
    Case("gemma2", "scores without a bound", NO_CAP),
    Case("gemma3_text", "", {**WINDOWS, "num_hidden_layers": 6}),
    Case(
        "gemma3_text",
        "a bound on logits and biases",
        {
            **WINDOWS,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "final_logit_softcapping": 3.0,
            "attention_bias": True,
        },
    ),
    Case("vaultgemma", "", WINDOWS, features=CAPPED),
    Case("vaultgemma", "scores without a bound", NO_CAP),
]
