"""What the TensorRT engine cannot compute, and why.

Owns the table. Never imports TensorRT, so that it can be shown anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from trident_compiler.families.features import Feature

REFUSALS: Mapping[Feature, str] = {}
