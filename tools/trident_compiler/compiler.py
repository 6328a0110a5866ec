"""The interfaces between a build and its compiler, and between a build and the display of its progress.

Owns the interfaces alone. Never imports a compiler: each one's module is imported only where it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trident_compiler.families.family import Decoder
from trident_compiler.families.features import Feature
from trident_compiler.model_folder import Checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
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


class EngineCompiler(Protocol):
    """A compiler and what it compiles for."""

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

    def precision(self, checkpoint: Checkpoint, compute: str | None, weight_format: str | None) -> Precision:
        """Return the number formats of an engine, with defaults resolved.

        Raises:
            BuildError: the target cannot compute in them.
        """
        ...

    def plan(self, checkpoint: Checkpoint, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Return the limits and the KV cache that fit into the target's memory.

        Raises:
            PlanError: something wanted is out of bounds or does not fit.
            CheckpointError: the target has no kernels for the checkpoint's attention.
        """
        ...

    def formats(self, precision: Precision) -> WeightFormats:
        """Return how `WeightSource` prepares the weights."""
        ...

    def write(
        self,
        folder: Path,
        model: Decoder,
        source_of: SourceOf,
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
