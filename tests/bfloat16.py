"""For tests of engines that compute in bfloat16."""

from __future__ import annotations

import pytest

from trident_compiler.openvino.compiler import computes_bf16

needs_bf16 = pytest.mark.skipif(not computes_bf16(), reason="this CPU cannot compute in bfloat16 (no AVX-512)")
BF16 = pytest.param("bf16", marks=needs_bf16)
