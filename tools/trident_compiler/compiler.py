"""The interfaces between a build and its compiler, and between a build and the display of its progress.

Owns the interfaces, and how a compiler gets the weights of a checkpoint. Never imports a compiler: each one's module is
imported only where it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trident_compiler.families.features import Feature
from trident_compiler.model_folder import Checkpoint, Opened_contra
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
from trident_compiler.weights.formats import count_matrices
from trident_compiler.weights.sharding import ShardSpec
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.manifest import Compiler, Precision

#: Hands out one device's share of the weights.
SourceOf = Callable[[ShardSpec], WeightSource]


class Progress(Protocol):
    """Receives a build's progress."""

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        """Begin a phase of `total` bytes, or of as many steps without a unit; 0 is unknown."""
        ...

    def reached(self, done: int) -> None:
        """Report how much of the phase is done."""
        ...


@dataclass(frozen=True)
class WeightFormats:
    """The arguments of `WeightSource` that say how it prepares weights.

    Args:
        matrix: its `matrix_format`.
        plain: its `plain_format`.
        uniform: its argument of that name.
    """

    matrix: str
    plain: str
    uniform: bool


def weights_of(checkpoint: Checkpoint, formats: WeightFormats, progress: Progress) -> SourceOf:
    """Return what hands out the weights of a checkpoint; preparing them is a phase of the build."""

    def source_of(share: ShardSpec) -> WeightSource:
        progress.phase("preparing weights", checkpoint.tensors.num_bytes)
        prepared = 0

        def on_weight(num_bytes: int) -> None:
            nonlocal prepared
            prepared += num_bytes
            progress.reached(prepared)

        return WeightSource(
            checkpoint.tensors,
            formats.matrix,
            formats.plain,
            tied=checkpoint.model.outline.is_tied,
            uniform=formats.uniform,
            share=share,
            on_weight=on_weight,
        )

    return source_of


def describe_matrices(checkpoint: Checkpoint, precision: Precision, matrix_format: str, num_devices: int = 1) -> str:
    """Return the formats of a checkpoint's weights, for people.

    Args:
        checkpoint: whose weights they are.
        precision: that was asked for.
        matrix_format: of matrices.
        num_devices: that share them.
    """
    num_all, num_wider = count_matrices(checkpoint.model.outline.weights, matrix_format, num_devices)
    text = f"{precision.weights} weights"
    if not num_wider:
        return text
    rows = "rows are" if num_devices == 1 else "parts of rows are"
    return f"{text} ({num_wider} of {num_all} matrices in int8: their {rows} no multiple of 32)"


class EngineCompiler(Protocol[Opened_contra]):
    """A compiler of one kind of model folders, and what it compiles for."""

    @property
    def compiler(self) -> Compiler:
        """Name, version and target, for the manifest."""
        ...

    @property
    def memory(self) -> str:
        """The memory that a plan counts, for people."""
        ...

    @property
    def num_devices(self) -> int:
        """Devices that share the network."""
        ...

    @property
    def refusals(self) -> Mapping[Feature, str]:
        """What the engine cannot compute, and why."""
        ...

    def precision(self, opened: Opened_contra, compute: str | None, weight_format: str | None) -> Precision:
        """Return the number formats of an engine, with defaults resolved.

        Raises:
            BuildError: the target cannot compute in them.
        """
        ...

    def plan(self, opened: Opened_contra, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Return the limits and the KV cache that fit into the target's memory.

        Raises:
            PlanError: something wanted is out of bounds or does not fit.
            CheckpointError: the target has no kernels for the checkpoint's attention.
        """
        ...

    def describe_weights(self, opened: Opened_contra, precision: Precision) -> str:
        """Return the formats of the weights, for people."""
        ...

    def write(
        self,
        folder: Path,
        opened: Opened_contra,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """Write the network, with its weights, into the engine folder.

        Raises:
            CheckpointError: tensors are missing, of another shape, or left over.
            BuildError: the compiler refuses the network; says why.
        """
        ...
