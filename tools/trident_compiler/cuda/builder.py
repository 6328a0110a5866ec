"""The program of an engine as it is written: values, weights, kernels, and launches in their order.

Owns the names of all of them and where the body ends and the head begins. Never knows what a launch computes, never
compiles a kernel, and gives values no place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from trident_backend.engine.gpu.program import (
    Argument,
    AttentionCall,
    AttentionKind,
    Count,
    Extent,
    Kind,
    Launch,
    Value,
)
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.weights_file import CountedWeights

Grid = tuple[Extent, Extent, Extent]
#: An axis of a grid that is not used.
ONE = Extent()
#: An address that a kernel does not read.
NOTHING = Argument(Kind.NOTHING)


def number(value: float) -> Argument:
    """Return an argument that is a number."""
    return Argument(Kind.NUMBER, number=float(value))


def value(name: str) -> Argument:
    """Return an argument that is the address of a value."""
    return Argument(Kind.VALUE, name)


def weight(name: str) -> Argument:
    """Return an argument that is the address of a weight."""
    return Argument(Kind.WEIGHT, name)


def count(counted: Count) -> Argument:
    """Return an argument that is the number of the step's tokens, or rows."""
    return Argument(Kind.COUNT, counted.value)


class LaunchMaker(Protocol):
    """A taker of launches; `ProgramBuilder` is one."""

    def value(self, width: int, dtype: str, count: Count) -> str:
        """Return the name of a new value of `count` rows and `width` columns; a buffer of a fixed size is one row."""
        ...

    def weight(self, name: str, array: Callable[[], npt.NDArray[Any]] | npt.NDArray[Any], dtype: str) -> str:
        """Return the name under which a weight is in the file, where it is written if it is not there yet.

        Args:
            name: the same for the same numbers, and other than all others'.
            array: the numbers, or what makes them if they must be written.
            dtype: Triton's name of their type.
        """
        ...

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        """Add a launch; its grid is counted by `counted`, and `least` and `most` are of that count."""
        ...

    @property
    def counted(self) -> Count:
        """The count of what is being written: tokens in the body, rows in the head."""
        ...


class Operation(Protocol):
    """An operation whose launches are made when the program is finished: others may be fused with it until then."""

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """What it reads and writes, by names that are its own."""
        ...

    def launch(self, make: LaunchMaker) -> None:
        """Make its launches."""
        ...


@dataclass(frozen=True)
class Step:
    """A launch as it was asked for, whose kernel has no name yet.

    Args:
        spec: of the kernel.
        grid: as `Launch` has it.
        arguments: as `Launch` has them.
        least: as `Launch` has it.
        most: as `Launch` has it.
    """

    spec: KernelSpec
    grid: Grid
    arguments: Mapping[str, Argument]
    least: int = 0
    most: int = 0


class ProgramBuilder:
    """A program that is being written; a `LaunchMaker`.

    Args:
        weights: takes its weights.
    """

    def __init__(self, weights: CountedWeights) -> None:
        self._weights = weights
        self._values: dict[str, Value] = {}
        self._kinds: list[AttentionKind] = []
        self._kernels: dict[KernelSpec, str] = {}
        self._num_of: dict[str, int] = {}
        self._steps: dict[Count, list[Step | Operation | AttentionCall]] = {Count.TOKENS: [], Count.ROWS: []}
        self._counted = Count.TOKENS

    @property
    def counted(self) -> Count:
        """The count of what is being written, as `LaunchMaker.counted`."""
        return self._counted

    @property
    def steps(self) -> Mapping[Count, Sequence[Step | Operation | AttentionCall]]:
        """The body, counted by tokens, and the head, counted by rows."""
        return self._steps

    @property
    def values(self) -> tuple[Value, ...]:
        """All values, without places."""
        return tuple(self._values.values())

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention, in the order of their first use."""
        return tuple(self._kinds)

    @property
    def kernels(self) -> dict[str, KernelSpec]:
        """The kernels that were named, by their names."""
        return {name: spec for spec, name in self._kernels.items()}

    def begin_head(self) -> None:
        """Begin the head: what is added from now on is counted by rows."""
        self._counted = Count.ROWS

    def value(self, width: int, dtype: str, count: Count) -> str:
        """Return the name of a new value, as `LaunchMaker.value`."""
        assert width > 0, width
        name = f"v{len(self._values)}"
        self._values[name] = Value(name, count, width, dtype)
        return name

    def weight(self, name: str, array: Callable[[], npt.NDArray[Any]] | npt.NDArray[Any], dtype: str) -> str:
        """Return the name of a weight, as `LaunchMaker.weight`."""
        if not self._weights.has(name):
            self._weights.append(name, array() if callable(array) else array, dtype)
        return name

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        """Add a launch to the body or the head, as `LaunchMaker.launch`."""
        self.add(_checked(Step(spec, grid, dict(arguments), least, most)))

    def add(self, operation: Step | Operation) -> None:
        """Add an operation to the body or the head."""
        self._steps[self._counted].append(operation)

    def attend(self, kind: AttentionKind, call: Callable[[int], AttentionCall]) -> None:
        """Add a layer's attention to the body.

        Args:
            kind: of it.
            call: makes it of the index of its kind.
        """
        assert self._counted is Count.TOKENS, "attention is of the body"
        if kind not in self._kinds:
            self._kinds.append(kind)
        self._steps[Count.TOKENS].append(call(self._kinds.index(kind)))

    def kernel(self, spec: KernelSpec) -> str:
        """Return the name of a kernel, one for all that are equal."""
        if spec not in self._kernels:
            index = self._num_of[spec.function] = self._num_of.get(spec.function, 0) + 1
            self._kernels[spec] = f"{spec.function}.{index}"
        return self._kernels[spec]

    def launches(
        self, steps: Sequence[Step | Operation | AttentionCall], counted: Count
    ) -> tuple[Launch | AttentionCall, ...]:
        """Return steps as launches, with their kernels named.

        Args:
            steps: of the body or of the head, fused or not.
            counted: of which of the two.
        """
        made = _Launches(self, counted)
        for step in steps:
            if isinstance(step, AttentionCall):
                made.launches.append(step)
            elif isinstance(step, Step):
                made.add(step)
            else:
                step.launch(made)
        return tuple(made.launches)


class _Launches:
    """A `LaunchMaker` that names kernels at once."""

    def __init__(self, builder: ProgramBuilder, counted: Count) -> None:
        self._builder = builder
        self.counted = counted
        self.launches: list[Launch | AttentionCall] = []
        self.value = builder.value
        self.weight = builder.weight

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        self.add(_checked(Step(spec, grid, dict(arguments), least, most)))

    def add(self, step: Step) -> None:
        kernel = self._builder.kernel(step.spec)
        self.launches.append(Launch(kernel, step.grid, step.arguments, step.least, step.most))


def _checked(step: Step) -> Step:
    wanted, given = {name for name, _ in step.spec.types}, set(step.arguments)
    assert given == wanted, f"{step.spec.function}: {sorted(given ^ wanted)} of its arguments"
    return step
