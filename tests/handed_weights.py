"""The weights that were handed to a compiler, and the numbers that they stand for.

Owns what tests need to compare a quantized engine with a model of the very same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trident_compiler.weights.tensor_parts import TensorPart
from trident_compiler.weights.weights import Weight, WeightSource

#: The formats that are computed in.
COMPUTE_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class RememberingSource(WeightSource):
    """Also keeps what it hands out, by the name of the whole tensor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handed: dict[str, Weight] = {}

    def matrix(self, source: str | TensorPart, *args: Any) -> Weight:
        return self._hand(source, super().matrix(source, *args))

    def embedding(self, source: str | TensorPart, *args: Any) -> Weight:
        return self._hand(source, super().embedding(source, *args))

    def head(self, source: str | TensorPart, *args: Any) -> Weight:
        return self._hand(source, super().head(source, *args))

    def _hand(self, source: str | TensorPart, weight: Weight) -> Weight:
        return self.handed.setdefault(source if isinstance(source, str) else source.full_name, weight)


def dequantized(weight: Weight, compute: torch.dtype) -> torch.Tensor:
    """The numbers that a stored weight stands for."""
    stored = torch.from_numpy(np.array(weight.values))
    if weight.format == "bf16":
        return stored.view(torch.int16).view(torch.bfloat16).float()
    if weight.format == "int4":
        halves = torch.stack([stored & 15, stored >> 4], -1).reshape(weight.shape).int()
        stored = halves - 16 * (halves > 7).int()
    if weight.format == "fp8":
        stored = stored.view(torch.float8_e4m3fn)
    values = stored.float()
    if weight.scales is None:
        return values.to(compute).float()
    scales = torch.from_numpy(weight.scales)
    assert torch.equal(scales.to(compute).float(), scales), "scales are rounded before values are divided by them"
    groups = values.reshape(weight.shape[0], scales.shape[1], -1) * scales[..., None]
    return groups.reshape(weight.shape).to(compute).float()
