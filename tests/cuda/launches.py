"""Launches that the compiler asks for, run on arrays: by the kernels' source in the interpreter, and by their twins.

Owns a `LaunchMaker` that keeps what it is told, and the comparison of source and twin, launch by launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cuda import twins
from tests.cuda.calls import Call, narrow, storage, widen
from tests.cuda.interpreting import interpret
from trident_backend.engine.gpu.program import Argument, Count, Kind, Launch
from trident_compiler.cuda.builder import Grid, Step, value
from trident_compiler.cuda.kernel_spec import KernelSpec

Array = npt.NDArray[Any]
#: Half the distance between neighbouring numbers, as a part of them.
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


class Recorder:
    """A `LaunchMaker` whose launches run on arrays.

    Args:
        arrays: by the names of the values, as they lie in memory.
    """

    def __init__(self, **arrays: Array) -> None:
        self.arrays: dict[str, Array] = dict(arrays)
        self.steps: list[Step] = []
        self.counted = Count.TOKENS

    def value(self, width: int, dtype: str, count: Count) -> str:
        assert count is Count.ONE, "kernels allocate buffers of a fixed size"
        name = f"buffer {len(self.arrays)}"
        self.arrays[name] = poison((width,), dtype)
        return name

    def weight(self, name: str, array: Callable[[], Array] | Array, dtype: str) -> str:
        self.arrays[name] = array() if callable(array) else array
        assert self.arrays[name].dtype == storage(dtype)
        return name

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        assert set(arguments) == {name for name, _ in spec.types}
        self.steps.append(Step(spec, grid, arguments, least, most))

    def run(self, num_rows: int, tolerance: float) -> list[KernelSpec]:
        """Run the launches that a step of so many rows has, and hold the source's results against the twin's.

        Args:
            num_rows: of the step.
            tolerance: largest difference of source and twin, relative to the largest result; rounding not counted.

        Returns:
            what ran.
        """
        ran = []
        for step in self.steps:
            if not Launch("", step.grid, step.arguments, step.least, step.most).takes(num_rows):
                continue
            spec = step.spec
            types, constants = dict(spec.types), dict(spec.constants)
            x, y, z = (extent.of({Count.TOKENS: num_rows}) for extent in step.grid)
            given = {name: self._given(argument, num_rows) for name, argument in step.arguments.items()}
            # What the kernel writes may be what it reads.
            copies = {id(array): array.copy() for array in given.values() if isinstance(array, np.ndarray)}
            twin = {name: copies[id(each)] if isinstance(each, np.ndarray) else each for name, each in given.items()}
            interpret(spec.function, (x, y, z), types, constants, given, backwards=True)
            twins.run(spec.function, Call.on_arrays((x, y, z), types, constants, twin))
            assert_close(given["out"], twin["out"], types["out"][1:], tolerance)
            ran.append(spec)
        assert ran, f"no launch for {num_rows} rows"
        return ran

    def _given(self, argument: Argument, num_rows: int) -> Any:
        if argument.kind is Kind.VALUE:
            return self.arrays[argument.name]
        if argument.kind is Kind.COUNT:
            assert argument.name == Count.TOKENS.value
            return num_rows
        assert argument.kind in (Kind.NUMBER, Kind.NOTHING), argument
        return argument.number if argument.kind is Kind.NUMBER else 0


def poison(shape: tuple[int, ...], dtype: str) -> Array:
    """Return memory that nobody has written."""
    return narrow(np.full(shape, np.nan, np.float32), dtype)


def at(*names: str) -> tuple[Argument, ...]:
    """Return the addresses of values."""
    return tuple(value(name) for name in names)


def assert_close(stored: Any, other: Any, dtype: str, tolerance: float) -> None:
    """Hold numbers as they lie in memory against others: equal but for rounding, and a part of the largest."""
    got, want = widen(stored, dtype).astype(np.float64), widen(other, dtype).astype(np.float64)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    largest = np.abs(want[finite]).max(initial=0.0)
    allowed = tolerance * largest + 2 * ROUNDING[dtype] * np.abs(want[finite])
    assert (np.abs(got[finite] - want[finite]) <= allowed).all(), np.abs(got[finite] - want[finite]).max()
