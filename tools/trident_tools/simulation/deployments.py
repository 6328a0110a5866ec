"""The deployment that is simulated, put together from several sources.

Owns the order of the sources: the command's options, the engine's manifest, the benchmark's file, the limits of
hardware and model, and the defaults of a build. Never reads a command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trident_backend.engine.protocol import EngineSpec
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.family import Decoder
from trident_compiler.families.registry import read_decoder
from trident_compiler.planning.memory_plan import DEFAULT_MAX_NUM_SEQS, DEFAULT_MAX_NUM_TOKENS, size
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, ConfigError, PlanError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import KVKind, Manifest, read_manifest
from trident_ensemble.contract.settings import CoreSettings
from trident_tools.server.built_models import find_models
from trident_tools.simulation.bench_file import BenchedServer
from trident_tools.simulation.hardware import Efficiency, Hardware
from trident_tools.simulation.model_shape import ModelShape
from trident_tools.simulation.roofline import RooflineCost
from trident_tools.simulation.step_cost import StepCost

DEFAULT_BLOCK_SIZE = 32


@dataclass(frozen=True)
class GivenLimits:
    """The limits given on the command line; None where one was not given."""

    max_num_seqs: int | None = None
    max_num_tokens: int | None = None
    block_size: int | None = None
    kv_tokens: int | None = None


@dataclass(frozen=True)
class Roof:
    """A network on hardware, described by their numbers.

    Args:
        hardware: the hardware that runs the network.
        efficiency: the shares of the hardware's numbers that are reached.
        shape: the shape of the network.
        max_seq_len: the longest context of the network, in tokens.
        step_overhead: seconds of every step besides the network.
    """

    hardware: Hardware
    efficiency: Efficiency
    shape: ModelShape
    max_seq_len: int
    step_overhead: float

    @property
    def cost(self) -> StepCost:
        """The cost of the network's steps."""
        return RooflineCost(
            self.shape,
            self.hardware.bandwidth * self.efficiency.bandwidth,
            self.hardware.flops * self.efficiency.flops,
            self.step_overhead,
        )

    def num_blocks(self, block_size: int) -> int:
        """Return how many KV blocks fit in the memory that the weights leave.

        Raises:
            PlanError: the weights leave too little for one block.
        """
        usable = self.hardware.memory * self.efficiency.memory
        num_blocks = int(usable - self.shape.weight_bytes) // (self.shape.kv_bytes_per_token * block_size)
        if num_blocks < 1:
            raise PlanError(
                f"weights: they take {size(int(self.shape.weight_bytes))} and {size(int(usable))} of memory may be "
                "used; choose smaller weights (--weights int8 or int4) or larger hardware (--gpu, --memory)"
            )
        return num_blocks


def read_model(path: Path) -> Decoder:
    """Read the architecture from a checkpoint's folder or from its config.json.

    Raises:
        CheckpointError: the file is missing or malformed, or Trident does not build the architecture.
    """
    return read_decoder(JsonConfig.read(path / "config.json" if path.is_dir() else path))


def folder_of_engine(path: Path) -> Path:
    """Return the engine folder of the one model in a repository, or the path itself if it is an engine folder.

    Raises:
        ArtifactError: the repository has several models, or the one has no engine.
    """
    names = model_of_repository(path)
    return path if names is None else layout.newest_version(path / names.core)


def model_of_repository(path: Path) -> ModelNames | None:
    """Return the names of the one model in a repository; None for what is no repository.

    Raises:
        ArtifactError: the repository has several models.
    """
    found = find_models(path)
    if len(found) > 1:
        engines = ", ".join(str(path / names.core / "1") for names in found)
        raise ArtifactError(f"--engine {path}: holds several models; name the engine of one: {engines}")
    return found[0] if found else None


def read_engine(path: Path) -> Manifest:
    """Read the manifest of an engine folder, or of the core in a model repository.

    Raises:
        ArtifactError: there is no manifest, or it cannot be used.
    """
    return read_manifest(folder_of_engine(path))


def engine_spec(
    limits: GivenLimits,
    settings: CoreSettings,
    manifest: Manifest | None,
    benched: BenchedServer | None,
    roof: Roof | None,
) -> EngineSpec:
    """Return the limits of one replica's engine.

    Raises:
        ConfigError: the size of the KV cache is not known, or the limits contradict one another.
        PlanError: the weights do not fit.
    """
    built = None if manifest is None else manifest.limits
    cache = None if manifest is None else manifest.kv_cache
    seen_size = None if benched is None else benched.block_size
    block_size = limits.block_size or (cache.block_size if cache else seen_size) or DEFAULT_BLOCK_SIZE
    if limits.kv_tokens is not None:
        num_blocks = limits.kv_tokens // block_size
    elif cache is not None:
        num_blocks = cache.num_blocks * cache.block_size // block_size
    elif benched is not None and benched.kv_tokens is not None:
        num_blocks = benched.kv_tokens // block_size
    elif roof is not None:
        num_blocks = roof.num_blocks(block_size)
    else:
        raise ConfigError("--kv-tokens: the size of the KV cache is not known; give it, or --engine")
    if num_blocks < 1:
        raise ConfigError(f"--kv-tokens: less than one block of {block_size} tokens")
    num_seqs = (
        limits.max_num_seqs or (built.max_num_seqs if built else None) or (benched.max_num_seqs if benched else None)
    )
    max_num_tokens = limits.max_num_tokens or (
        built.max_num_tokens if built else max(DEFAULT_MAX_NUM_TOKENS, num_seqs or 0)
    )
    max_num_seqs = num_seqs or min(DEFAULT_MAX_NUM_SEQS, max_num_tokens)
    budget = settings.token_budget or max_num_tokens
    if not max_num_seqs <= budget <= max_num_tokens:
        option = "--token-budget" if settings.token_budget else "--max-num-tokens"
        raise ConfigError(
            f"{option}: must be from {max_num_seqs} (--max-num-seqs) to {max_num_tokens} (--max-num-tokens), "
            f"not {budget}"
        )
    kind = cache.kind if cache else KVKind.BLOCKS
    room = block_size if kind is KVKind.SLOTS else num_blocks * block_size
    longest = built.max_seq_len if built else roof.max_seq_len if roof else room
    return EngineSpec(0, max_num_seqs, max_num_tokens, min(longest, room), block_size, num_blocks, kind)
