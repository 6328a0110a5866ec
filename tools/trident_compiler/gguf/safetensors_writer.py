"""A safetensors file, written tensor by tensor.

Owns the format: everything's place is known before the first value, so that no more than a slice of a tensor is in
memory. Never converts a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.gguf.values import STORED

#: The header is padded to a multiple of it, so that values lie aligned.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Slot:
    """The place of one tensor.

    Args:
        name: the tensor's.
        dtype: BF16, F16 or F32.
        shape: slowest dimension first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(STORED[self.dtype]).itemsize


def write_safetensors(path: Path, slots: Iterable[Slot], values: Iterable[Iterable[npt.NDArray[Any]]]) -> None:
    """Write a file.

    Args:
        path: where to.
        slots: the tensors, in the order in which their values come.
        values: of each tensor, slice by slice.

    Raises:
        OSError: it cannot be written.
    """
    slots = tuple(slots)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for slot in slots:
        end = position + slot.num_bytes
        header[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        end = 0
        for slot, slices in zip(slots, values, strict=True):
            for piece in slices:
                file.write(np.ascontiguousarray(piece).data)
            end += slot.num_bytes
            assert file.tell() == begin + end, slot.name
