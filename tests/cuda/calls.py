"""One launch of a kernel as its twin in numpy sees it: numbers, and arrays by the names of the parameters.

Owns how Triton's types lie in memory, and that nothing is touched outside of it: whoever makes a call gives the memory,
and says what may be looked at. Never knows what a kernel computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.tensorrt import number_formats
from tests.tensorrt.number_formats import BF16, FLOAT, FP8, HALF

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
#: The memory at an address, so many bytes of it; raises where that is not all allocated.
View = Callable[[int, int], Bytes]

_FLOATING = {"fp32": FLOAT, "fp16": HALF, "bf16": BF16, "fp8e4nv": FP8}
_INTEGERS = {"i1": np.bool_, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "i32": np.int32, "u32": np.uint32}
_LONG = {"i64": np.int64, "u64": np.uint64}
_WHOLE: Mapping[str, npt.DTypeLike] = {**_INTEGERS, **_LONG}


@cache
def storage(dtype: str) -> np.dtype[Any]:
    """Return the type of numpy that numbers of a Triton type, such as `bf16`, lie in memory as."""
    return np.dtype(number_formats.STORAGE[_FLOATING[dtype]] if dtype in _FLOATING else _WHOLE[dtype])


def widen(stored: Array, dtype: str) -> Array:
    """Return numbers as float32, from how they lie in memory; whole ones and float32 stay as they are."""
    kind = _FLOATING.get(dtype)
    if kind is None or kind == FLOAT:
        return stored
    return stored.astype(np.float32) if kind == HALF else number_formats.decode(stored, kind)


def narrow(numbers: Array, dtype: str) -> Array:
    """Return numbers as they lie in memory, rounded to the nearest of the type; fp8 saturates."""
    kind = _FLOATING.get(dtype)
    if kind is None:
        return numbers.astype(_WHOLE[dtype], copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.ascontiguousarray(numbers, np.float32)
        return number_formats.encode(number_formats.rounded(wide, kind), kind)


class Call:
    """One launch of a kernel.

    Args:
        grid: programs along each axis.
        types: Triton's, by the names of the parameters: `*bf16`, `i32`.
        constants: what was fixed when the kernel was compiled.
        arguments: numbers, and addresses of the parameters that are pointers.
        view: gives the memory.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        types: Mapping[str, str],
        constants: Mapping[str, int | float | bool],
        arguments: Mapping[str, int | float],
        view: View,
    ) -> None:
        self.grid = grid
        self.types = types
        self.constants = constants
        self._arguments = arguments
        self._view = view

    @classmethod
    def on_arrays(
        cls,
        grid: tuple[int, int, int],
        types: Mapping[str, str],
        constants: Mapping[str, int | float | bool],
        arguments: Mapping[str, Array | int | float],
    ) -> Call:
        """Return a call on arrays as they lie in memory (bf16 as uint16, fp8 as uint8), each with bounds of its own."""
        memories = {a.ctypes.data: _bytes_of(a) for a in arguments.values() if isinstance(a, np.ndarray) and a.size}

        def view(address: int, num_bytes: int) -> Bytes:
            for base, memory in memories.items():
                if base <= address and address + num_bytes <= base + memory.size:
                    return memory[address - base : address - base + num_bytes]
            raise IndexError(f"{num_bytes} bytes at {address:#x} are in none of the arrays")

        given = {name: a.ctypes.data if isinstance(a, np.ndarray) else a for name, a in arguments.items()}
        return cls(grid, types, constants, given, view)

    def number(self, name: str) -> Any:
        """Return an argument that is a number."""
        assert not self.types[name].startswith("*"), f"{name} is an address"
        return self._arguments[name]

    def is_null(self, name: str) -> bool:
        """Return whether the address is that of nothing."""
        return not self._arguments[name]

    def raw(self, name: str, shape: tuple[int, ...], offset: int = 0) -> Array:
        """Return the memory itself from `offset` numbers after the address, to be read and written."""
        dtype = storage(self._pointed(name))
        num_bytes = math.prod(shape) * dtype.itemsize
        if not num_bytes:
            return np.empty(shape, dtype)
        assert offset >= 0, f"{name}: {offset} numbers before the address"
        address = int(self._arguments[name]) + offset * dtype.itemsize
        return self._view(address, num_bytes).view(dtype).reshape(shape)

    def read(self, name: str, shape: tuple[int, ...], offset: int = 0) -> Array:
        """Return numbers, floating-point ones as float32; not to be written to."""
        found = widen(self.raw(name, shape, offset), self._pointed(name))
        found = found.view()
        found.flags.writeable = False
        return found

    def store(self, name: str, array: Array, offset: int = 0, where: Array | None = None) -> None:
        """Write numbers, rounded to the parameter's type; where `where`, of a shape that fits, is true."""
        target = self.raw(name, array.shape, offset)
        np.copyto(target, narrow(array, self._pointed(name)), where=True if where is None else where)

    def gather(self, name: str, offsets: Array, width: int) -> Array:
        """Return `width` numbers from each offset on: `[*offsets.shape, width]`; floating-point ones as float32."""
        dtype = self._pointed(name)
        if not offsets.size:
            return widen(np.empty((*offsets.shape, width), storage(dtype)), dtype)
        rows, places = self._rows(name, offsets, width)
        return widen(rows[places], dtype)

    def scatter(self, name: str, offsets: Array, array: Array) -> None:
        """Write rows of an array, `[*offsets.shape, width]`, to the offsets, rounded to the parameter's type."""
        if offsets.size:
            rows, places = self._rows(name, offsets, array.shape[-1])
            rows[places] = narrow(array, self._pointed(name))

    def _rows(self, name: str, offsets: Array, width: int) -> tuple[Array, Any]:
        """Return memory and an index of it that gives the rows of so many numbers at the offsets."""
        wide = offsets.astype(np.int64)
        least, most = int(wide.min()), int(wide.max()) + width
        assert least >= 0, f"{name}: {least} numbers before the address"
        if not (wide % width).any():
            return self.raw(name, (most // width, width)), wide // width
        return self.raw(name, (most,)), wide[..., None] + np.arange(width)

    def _pointed(self, name: str) -> str:
        dtype = self.types[name]
        assert dtype.startswith("*"), f"{name} is a number"
        return dtype[1:]


def _bytes_of(array: Array) -> Bytes:
    assert array.flags.c_contiguous, "kernels see whole arrays"
    return array.reshape(-1).view(np.uint8)
