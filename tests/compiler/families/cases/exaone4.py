"""EXAONE 4."""

from tests.compiler.families.case import SIZES, WINDOW, Case

CASES = [
    Case("exaone4", "", {**SIZES, "sliding_window": WINDOW}),
    Case("exaone4", "no windows", {**SIZES, "sliding_window": None, "layer_types": ["full_attention"] * 4}),
]
