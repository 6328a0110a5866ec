"""Operations that may be fused with what follows them: products, activations, sums and products of two values.

Owns what each reads and writes and which launches it becomes. Never fuses anything, and gives no value a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trident_backend.engine.gpu.program import Argument
from trident_compiler.cuda.builder import NOTHING, LaunchMaker
from trident_compiler.cuda.linear_kernels import linear_launches
from trident_compiler.cuda.linear_tiles import Matrix
from trident_compiler.cuda.pointwise_kernels import activation_launch, gated_launch, product_launch, sum_launch
from trident_compiler.cuda.targets import Capability
from trident_compiler.families.words import Activation


@dataclass(frozen=True)
class Target:
    """The target that all operations of a program are written for.

    Args:
        compute: Triton's type of activations.
        capability: of the GPU.
        max_rows: tokens of a step, at most.
    """

    compute: str
    capability: Capability
    max_rows: int


@dataclass(frozen=True)
class Linear:
    """The product of a value with matrices, as `linear_launches` has it."""

    target: Target
    matrix: Matrix
    x: Argument
    weight: Argument
    out: Argument
    out_dtype: str
    scales: Argument = NOTHING
    bias: Argument = NOTHING
    residual: Argument = NOTHING

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """What it reads and writes."""
        return {"x": self.x, "out": self.out, "residual": self.residual}

    def launch(self, make: LaunchMaker) -> None:
        """Make the launches for every number of rows."""
        linear_launches(
            make,
            self.matrix,
            self.x,
            self.weight,
            self.out,
            compute=self.target.compute,
            out_dtype=self.out_dtype,
            capability=self.target.capability,
            max_rows=self.target.max_rows,
            scales=self.scales,
            bias=self.bias,
            residual=self.residual,
        )


@dataclass(frozen=True)
class Activate:
    """An activation of a value `[rows, width]`."""

    kind: Activation
    x: Argument
    out: Argument
    width: int
    dtype: str

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """What it reads and writes."""
        return {"x": self.x, "out": self.out}

    def launch(self, make: LaunchMaker) -> None:
        """Make its launch."""
        activation_launch(make, self.kind, self.x, self.out, width=self.width, dtype=self.dtype)


@dataclass(frozen=True)
class Sum:
    """The sum of two values `[rows, width]`."""

    a: Argument
    b: Argument
    out: Argument
    width: int
    dtype: str

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """What it reads and writes."""
        return {"a": self.a, "b": self.b, "out": self.out}

    def launch(self, make: LaunchMaker) -> None:
        """Make its launch."""
        sum_launch(make, self.a, self.b, self.out, width=self.width, dtype=self.dtype)


@dataclass(frozen=True)
class Product:
    """The product of two values, `[rows, width]` and `[rows, b_width]`, whose width is the same or 1."""

    a: Argument
    b: Argument
    out: Argument
    width: int
    b_width: int
    dtype: str

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """What it reads and writes."""
        return {"a": self.a, "b": self.b, "out": self.out}

    def launch(self, make: LaunchMaker) -> None:
        """Make its launch."""
        product_launch(make, self.a, self.b, self.out, width=self.width, b_width=self.b_width, dtype=self.dtype)


@dataclass(frozen=True)
class Gated:
    """An activation of one value times another, `[rows, width]`."""

    kind: Activation
    gate: Argument
    up: Argument
    out: Argument
    width: int
    dtype: str

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """What it reads and writes."""
        return {"gate": self.gate, "up": self.up, "out": self.out}

    def launch(self, make: LaunchMaker) -> None:
        """Make its launch."""
        gated_launch(make, self.kind, self.gate, self.up, self.out, width=self.width, dtype=self.dtype)
