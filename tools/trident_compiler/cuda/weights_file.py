"""The weights' file of an engine of our own kernels.

Owns where each weight lies, once for its name and at an aligned offset, and the writing of weights as they come. Never
holds a weight, and never knows what it is for.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.gpu.program import ITEM_BYTES, StoredWeight
from trident_ensemble.contract.errors import BuildError


class CountedWeights:
    """Weights that are placed and not written: what a file of them would be."""

    def __init__(self) -> None:
        self._stored: dict[str, StoredWeight] = {}
        self.num_bytes = 0

    @property
    def stored(self) -> tuple[StoredWeight, ...]:
        """All weights, in the order in which they came."""
        return tuple(self._stored.values())

    def has(self, name: str) -> bool:
        """Return whether a weight of that name is there."""
        return name in self._stored

    def append(self, name: str, values: npt.NDArray[Any], dtype: str) -> StoredWeight:
        """Place a weight of a new name.

        Args:
            name: of it.
            values: whose memory, as it is, becomes the weight's.
            dtype: Triton's name of what the memory holds.
        """
        assert name not in self._stored, name
        assert values.dtype.itemsize == ITEM_BYTES[dtype], f"{name}: {values.dtype} for {dtype}"
        offset = -(-self.num_bytes // ALIGNMENT) * ALIGNMENT
        self.num_bytes = offset + values.nbytes
        self._stored[name] = StoredWeight(name, dtype, tuple(values.shape), offset, values.nbytes)
        return self._stored[name]


class WeightsFile(CountedWeights):
    """A new file that weights are appended to; a context manager, which closes it.

    Args:
        path: of it.

    Raises:
        BuildError: it cannot be written; the same in all methods.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._refused(error) from None

    def append(self, name: str, values: npt.NDArray[Any], dtype: str) -> StoredWeight:
        """Append a weight of a new name, as `CountedWeights.append` places it."""
        end = self.num_bytes
        stored = super().append(name, values, dtype)
        try:
            self._file.write(bytes(stored.offset - end))
            if values.size:
                self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._refused(error) from None
        return stored

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as cause:
            raise self._refused(cause) from None

    def _refused(self, error: OSError) -> BuildError:
        return BuildError(f"{self._path} cannot be written: {error.strerror or error}")
