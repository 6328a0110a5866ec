"""The weights' file of an engine of our own kernels.

Owns its writing: each weight is appended as it comes, at an aligned offset, once for its name. Never holds a weight,
and never knows what it is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_backend.engine.cuda.program import StoredWeight
from trident_backend.engine.gpu.names import ALIGNMENT
from trident_ensemble.contract.errors import BuildError

#: Bytes of a number, by Triton's name of its type.
ITEM_BYTES = {"fp32": 4, "i32": 4, "i64": 8, "bf16": 2, "fp16": 2, "i8": 1, "u8": 1, "fp8e4nv": 1}


class WeightsFile:
    """A new file that weights are appended to.

    Args:
        path: of it.

    Raises:
        BuildError: it cannot be written; the same in all methods.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored: dict[str, StoredWeight] = {}
        self._num_bytes = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._refused(error) from None

    @property
    def stored(self) -> tuple[StoredWeight, ...]:
        """All weights, in the order in which they came."""
        return tuple(self._stored.values())

    def has(self, name: str) -> bool:
        """Return whether a weight of that name is there."""
        return name in self._stored

    def append(self, name: str, values: npt.NDArray[Any], dtype: str) -> StoredWeight:
        """Append a weight of a new name.

        Args:
            name: of it.
            values: whose memory, as it is, becomes the weight's.
            dtype: Triton's name of what the memory holds.
        """
        assert name not in self._stored, name
        assert values.dtype.itemsize == ITEM_BYTES[dtype], f"{name}: {values.dtype} for {dtype}"
        values = np.ascontiguousarray(values)
        offset = -(-self._num_bytes // ALIGNMENT) * ALIGNMENT
        try:
            self._file.write(bytes(offset - self._num_bytes))
            if values.size:
                self._file.write(values.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._refused(error) from None
        self._num_bytes = offset + values.nbytes
        self._stored[name] = StoredWeight(name, dtype, tuple(values.shape), offset, values.nbytes)
        return self._stored[name]

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> BuildError:
        return BuildError(f"{self._path} cannot be written: {error.strerror or error}")
