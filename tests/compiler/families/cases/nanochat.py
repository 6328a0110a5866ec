"""NanoChat."""

from tests.compiler.families.case import SIZES, Case

CASES = [
    Case("nanochat"),
    Case(
        "nanochat", "biases and no bound on logits", {**SIZES, "attention_bias": True, "final_logit_softcapping": None}
    ),
]
