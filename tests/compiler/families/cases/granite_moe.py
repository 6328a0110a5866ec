"""Granite with mixtures, with experts that are branched and with experts that are gathered."""

from typing import Any

from tests.compiler.families.case import SIZES, Case
from trident_compiler.families.features import Feature

_EXPERTS = (Feature.EXPERTS,)
_FACTORS: dict[str, Any] = {
    **SIZES, "num_experts_per_tok": 2, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
}  # fmt: skip

CASES = [
    Case("granitemoe", "", {**_FACTORS, "num_local_experts": 4}, mixture=True, features=_EXPERTS),
    Case(
        "granitemoe", "sixteen experts, biases and a tied head",
        {**_FACTORS, "num_local_experts": 16, "attention_bias": True, "tie_word_embeddings": True},
        mixture=True, features=_EXPERTS,
    ),
    Case(
        "granitemoeshared", "", {**_FACTORS, "num_local_experts": 4, "shared_intermediate_size": 32},
        mixture=True, features=_EXPERTS,
    ),
]  # fmt: skip
