"""Phi 3, 3.5 and 4."""

from tests.compiler.families.case import SIZES, WINDOW, Case

#: The features of a head are 16, of which 12 are rotated.
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
}  # fmt: skip

CASES = [
    Case("phi3", "", {**SIZES, "sliding_window": WINDOW}),
    Case("phi3", "longrope, long", {
        **SIZES, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 32,
    }, max_seq_len=256),
    Case("phi3", "longrope, short", {
        **SIZES, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 128, "tie_word_embeddings": True,
    }, max_seq_len=128),
]  # fmt: skip
