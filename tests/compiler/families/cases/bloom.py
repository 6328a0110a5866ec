"""Bloom."""

from tests.compiler.families.case import Case
from trident_compiler.families.features import Feature

_SIZES = {"vocab_size": 96, "hidden_size": 64, "n_layer": 4, "n_head": 4}

CASES = [
    Case("bloom", "", _SIZES, features=(Feature.ALIBI,)),
    Case("bloom", "heads that are no power of two", {
        **_SIZES, "hidden_size": 96, "n_head": 6, "tie_word_embeddings": False,
    }, features=(Feature.ALIBI,)),
]  # fmt: skip
