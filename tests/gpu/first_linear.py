"""Products with matrices of weights on a GPU for the first time: right, and how fast.

Owns the numbers that are tried. Never judges: it returns lines for a page, and raises `WrongError` where numbers are
wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np

from tests.cuda.calls import narrow, storage, widen
from tests.gpu.first_attention import WrongError
from tests.gpu.first_bench import Array, Bench
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.program import Argument, Count, Kind, Launch, Program, StoredWeight

#: Rows that are checked, that are timed as generation, and as prompts.
CHECKED = (1, 5, 16, 40, 64, 200, 300)
FEW = (1, 16, 64)
MANY = (2048, 8192)
#: Largest error of bf16, relative to the norm of all results.
TOLERANCE = 1e-2
#: Weights that do not fit into a GPU's cache.
_COLD_BYTES = 512 << 20
_DTYPE = "bf16"
#: Outputs that are compared.
_COMPARED = 256


def cases(program: Program) -> list[str]:
    """The names of the matrices of a program; all names of a case begin with its own."""
    return [weight.name.partition(":")[0] for weight in program.weights if weight.name.endswith(":weight")]


class Product:
    """A product on the device.

    Args:
        bench: has its memory.
        kernels: the program's.
        program: has the launches.
        case: one of `cases`.
        num_rows: of the step.
    """

    def __init__(self, bench: Bench, kernels: KernelLibrary, program: Program, case: str, num_rows: int) -> None:
        self._kernels, self._num_rows = kernels, num_rows
        self._counts = {Count.TOKENS: num_rows}
        self._launches = [
            each
            for each in program.body
            if isinstance(each, Launch) and each.arguments["out"].name.startswith(f"{case}:") and each.takes(num_rows)
        ]
        self.weight, *self.scales = (each for each in program.weights if each.name.startswith(f"{case}:"))
        out_size, in_size = self.weight.shape
        self.shape = (out_size, in_size * 2 if self._has_groups else in_size)
        self.bench = bench
        self._at = {
            each.name: bench.empty((num_rows if each.count is Count.TOKENS else 1) * each.width * _bytes(each.dtype))
            for each in program.values
            if each.name.startswith(f"{case}:")
        }
        self._x, self._out = self._at[f"{case}:x"], self._at[f"{case}:out"]
        self._weights: list[int] = []
        self._scales = 0

    @property
    def _has_groups(self) -> bool:
        return bool(self.scales) and len(self.scales[0].shape) == 2

    def run(self, index: int = 0) -> None:
        """Enqueue the product, with each of the copies of its weights in turn."""
        weight = self._weights[index % len(self._weights)]
        for launch in self._launches:
            x, y, z = (extent.of(self._counts) for extent in launch.grid)
            arguments = {name: self._given(each, weight) for name, each in launch.arguments.items()}
            self._kernels.launch(launch.kernel, (x, y, z), arguments)

    def fill(self) -> None:
        """Give it random numbers of no account, in as many copies as no cache holds."""
        device, num_bytes = self.bench.device, self.weight.num_bytes
        number = max(1, -(-_COLD_BYTES // num_bytes)) if self._num_rows <= max(FEW) else 1
        self._weights = [self.bench.random(num_bytes) for _ in range(number)]
        self._scales = self.bench.random(self.scales[0].num_bytes) if self.scales else 0
        device.copy(self._x, self.bench.random(self._num_rows * self.shape[1] * 2), self._num_rows * self.shape[1] * 2)

    def error(self, seed: int) -> float:
        """Compute with random numbers, and return the error against float64."""
        rng = np.random.default_rng(seed)
        x = narrow(rng.standard_normal((self._num_rows, self.shape[1])).astype(np.float32), _DTYPE)
        weight, numbers = self._random_weight(rng)
        self._weights = [self.bench.put(weight)]
        if self.scales:
            scales = rng.uniform(0.5, 1.5, self.scales[0].shape).astype(np.float32)
            self._scales = self.bench.put(scales)
            per_number = scales[:_COMPARED].reshape(numbers.shape[0], -1)
            numbers = numbers * np.repeat(per_number, numbers.shape[1] // per_number.shape[1], axis=1)
        self.bench.device.upload(self._x, x)
        self.run()
        found = widen(self.bench.get(self._out, np.empty((self._num_rows, self.shape[0]), np.uint16)), _DTYPE)
        wanted = widen(x, _DTYPE).astype(np.float64) @ numbers.T
        return float(np.linalg.norm(found[:, :_COMPARED] - wanted) / np.linalg.norm(wanted))

    def _random_weight(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """The weights as they are stored, and the first rows of their numbers."""
        rows, columns = self.weight.shape
        if self.weight.dtype == "i8":
            stored = rng.integers(-128, 128, (rows, columns), np.int8)
            first = stored[:_COMPARED]
            if not self._has_groups:
                return stored, first.astype(np.float64)
            halves = np.stack([(first << 4) >> 4, first >> 4], axis=-1)  # two to a byte, the low half first
            return stored, halves.reshape(len(first), -1).astype(np.float64)
        stored = narrow(rng.standard_normal((rows, columns)).astype(np.float32), self.weight.dtype)
        return stored, widen(stored[:_COMPARED], self.weight.dtype).astype(np.float64)

    def _given(self, argument: Argument, weight: int) -> int | float:
        if argument.kind is Kind.WEIGHT:
            return weight if argument.name == self.weight.name else self._scales
        if argument.kind is Kind.VALUE:
            return self._at[argument.name]
        return self._num_rows if argument.kind is Kind.COUNT else 0


def check(bench: Bench, kernels: KernelLibrary, program: Program, rows: tuple[int, ...] = CHECKED) -> Iterator[str]:
    """Hold every matrix's products against float64; yields a line for each.

    Raises:
        WrongError: a number is wrong.
    """
    for case in cases(program):
        worst = 0.0
        for seed, num_rows in enumerate(rows):
            with closing(Bench(bench.device)) as own:
                error = Product(own, kernels, program, case, num_rows).error(seed)
            if not error < TOLERANCE:
                raise WrongError(f"{case} of {num_rows} rows: error {error:.1e}, {TOLERANCE:.0e} are allowed")
            worst = max(worst, error)
        yield f"linear {case}: {', '.join(map(str, rows))} rows right, largest error {worst:.1e}"


def measure(
    bench: Bench,
    kernels: KernelLibrary,
    program: Program,
    few: tuple[int, ...] = FEW,
    many: tuple[int, ...] = MANY,
) -> Iterator[str]:
    """Time every matrix's products; yields a line for each."""
    for case in cases(program):
        parts = []
        for num_rows in (*few, *many):
            with closing(Bench(bench.device)) as own:
                product = Product(own, kernels, program, case, num_rows)
                product.fill()
                seconds = bench.seconds(product.run)
            speed = (
                f"{product.weight.num_bytes / seconds / 1e12:.2f} TB/s"
                if num_rows in few
                else f"{2 * num_rows * product.shape[0] * product.shape[1] / seconds / 1e12:.0f} TFLOP/s"
            )
            parts.append(f"{num_rows} rows {speed}")
        yield f"linear {case}: {', '.join(parts)}"


def random_weight(each: StoredWeight, rng: np.random.Generator) -> Array:
    """Small random numbers as they lie in a file of weights, flat."""
    size = each.num_bytes // _bytes(each.dtype)
    if each.dtype.startswith("i"):
        return rng.integers(-100, 100, size).astype(storage(each.dtype))
    return narrow(rng.standard_normal(size, np.float32) * np.float32(0.02), each.dtype)


def _bytes(dtype: str) -> int:
    return storage(dtype).itemsize
