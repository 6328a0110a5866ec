"""What building an engine asks of a compiler.

Owns the interface alone; each compiler's module is imported only where it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trident_compiler.checkpoint.checkpoint import Checkpoint
from trident_compiler.checkpoint.model_config import ModelConfig
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
from trident_compiler.progress import Progress
from trident_compiler.weights.sharding import ShardSpec
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.manifest import Compiler, Precision

#: Hands out one device's share of the weights.
SourceOf = Callable[[ShardSpec], WeightSource]


@dataclass(frozen=True)
class WeightFormats:
    """How `WeightSource` prepares weights; its arguments of the same names say what they are."""

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
        """Which memory a plan counts, for people."""
        ...

    @property
    def num_devices(self) -> int:
        """Devices among which the network is divided."""
        ...

    def precision(self, checkpoint: Checkpoint, compute: str | None, weight_format: str | None) -> Precision:
        """The number formats of an engine, defaults resolved.

        Raises:
            PlanError: the target cannot compute in them.
        """
        ...

    def plan(self, checkpoint: Checkpoint, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Limits and KV cache that fit into the target's memory.

        Raises:
            PlanError: something wanted is out of bounds or does not fit.
            CheckpointError: the target has no kernels for the checkpoint's attention.
        """
        ...

    def formats(self, precision: Precision) -> WeightFormats:
        """How the weights come."""
        ...

    def write(
        self,
        folder: Path,
        config: ModelConfig,
        source_of: SourceOf,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """Take the weights, and write the network into the engine folder.

        Raises:
            CheckpointError: tensors are missing, of another shape, or left over.
            PlanError: the compiler refuses the network; says why.
        """
        ...
