"""StableLM."""

from tests.compiler.families.case import SIZES, Case

CASES = [
    Case("stablelm"),
    Case("stablelm", "norms of heads, branches side by side", {
        **SIZES, "use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True,
        "partial_rotary_factor": 0.5,
    }),
]  # fmt: skip
