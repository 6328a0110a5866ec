"""What the engine of our own kernels cannot compute, and why.

Owns the table. Never imports Triton, so that it can be shown anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from trident_compiler.families.features import Feature

REFUSALS: Mapping[Feature, str] = {}
