"""Mixtral, with experts that are branched and with experts that are gathered."""

from tests.compiler.families.case import SIZES, WINDOW, Case
from trident_compiler.families.features import Feature

_EXPERTS = (Feature.EXPERTS,)

CASES = [
    Case("mixtral", "", {**SIZES, "num_local_experts": 4}, mixture=True, features=_EXPERTS),
    Case(
        "mixtral", "sixteen experts and a window", {**SIZES, "num_local_experts": 16, "sliding_window": WINDOW},
        mixture=True, features=_EXPERTS,
    ),
    Case(
        "mixtral", "experts with gelu", {**SIZES, "num_local_experts": 10, "hidden_act": "gelu"},
        mixture=True, features=_EXPERTS,
    ),
]  # fmt: skip
