"""The manifest of an engine, `engine.json`, which is the only source of the engine's limits.

Owns the format, its reading and writing, and the checks of its fields, for the compiler, the core and the text models
alike. Never opens another file of the engine; `digests` compares those with what the manifest says of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError

FORMAT_VERSION = 6

Part = TypeVar("Part")


@dataclass(frozen=True)
class Architecture:
    """The network's shape, as far as serving it needs to know."""

    family: str
    num_layers: int
    vocab_size: int


@dataclass(frozen=True)
class Limits:
    """The engine's limits.

    Args:
        max_num_seqs: sequences in one step, at most.
        max_num_tokens: tokens computed in one step, at most.
        max_seq_len: prompt and output of one sequence together, in tokens, at most.
    """

    max_num_seqs: int
    max_num_tokens: int
    max_seq_len: int


@dataclass(frozen=True)
class PrecisionTrial:
    """Milliseconds of a prompt's step, and of a step with one token of each of several sequences, through a few layers
    of the network's shape, computed in one format on the machine that built the engine."""

    compute: str
    prompt_ms: float
    decode_ms: float


@dataclass(frozen=True)
class PrecisionChoice:
    """The reason why an engine computes in its format.

    Args:
        reason: for people.
        cpu: the model of the CPU on which the formats were tried; empty where they were not.
        trials: one for each format that was tried.
    """

    reason: str = ""
    cpu: str = ""
    trials: tuple[PrecisionTrial, ...] = ()


@dataclass(frozen=True)
class Precision:
    """The number formats of an engine.

    Args:
        compute: bf16, fp16 or fp32.
        weights: fp32, bf16, fp16, int8, int4 or fp8.
        kv_cache: u8, fp8, bf16, f16 or f32.
        choice: why `compute` is what it is.
        activation_group: neighbouring activations that share a scale where an engine on a CPU multiplies them with
            quantized weights in int8; 0 where weights are not quantized, and on GPUs.
    """

    compute: str
    weights: str
    kv_cache: str
    choice: PrecisionChoice = PrecisionChoice()
    activation_group: int = 0


class KVKind(str, Enum):
    """The kinds of KV cache that an engine may have."""

    #: A pool of equal blocks; a sequence has as many as its tokens need, anywhere in the pool.
    BLOCKS = "blocks"
    #: One slot for each sequence, as long as the longest.
    SLOTS = "slots"


@dataclass(frozen=True)
class KVLayout:
    """The KV cache.

    Args:
        block_size: tokens in one block, or slot.
        num_blocks: blocks, or slots.
        block_bytes: bytes of one block, or slot, of keys and values through all layers, on each device.
        kind: which of the two it is made of.
    """

    block_size: int
    num_blocks: int
    block_bytes: int
    kind: KVKind = KVKind.BLOCKS


@dataclass(frozen=True)
class Compiler:
    """The compiler of the network, and its target: `cpu`, or a GPU's compute capability as `sm_target` spells it."""

    name: str
    version: str
    target: str = "cpu"


def sm_target(capability: tuple[int, int]) -> str:
    """Return a compute capability, major and minor, as manifests spell it, such as `sm_89`."""
    return f"sm_{capability[0]}{capability[1]}"


@dataclass(frozen=True)
class Generation:
    """The checkpoint's generation defaults, in the terms of `SamplingParams`; what it leaves open has no effect."""

    end_ids: tuple[int, ...]
    temperature: float
    top_k: int
    top_p: float
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The contents of `engine.json`.

    Args:
        digests: of every other file of the folder, by its relative POSIX path; `digests` says what they are.
        tensor_parallel: devices among which the network is divided; each has its own plan.
        resident_bytes: what the engine takes beside its KV cache once it runs, weights included, on each device, as it
            was planned.
    """

    format_version: int
    architecture: Architecture
    limits: Limits
    precision: Precision
    kv_cache: KVLayout
    compiler: Compiler
    generation: Generation
    digests: dict[str, str]
    tensor_parallel: int = 1
    resident_bytes: int = 0

    @property
    def runs_on_gpus(self) -> bool:
        """Whether the engine was compiled for GPUs."""
        return self.compiler.target != "cpu"

    @property
    def memory_bytes(self) -> int:
        """All that the engine takes once it runs, on each device, as it was planned."""
        return self.resident_bytes + self.kv_cache.num_blocks * self.kv_cache.block_bytes


def _parse(kind: type[Part], raw: Any, where: str) -> Part:
    """Build one frozen part from JSON; refuse unknown, missing and mistyped fields by name."""
    if not isinstance(raw, Mapping):
        raise ArtifactError(f"{where}: must be an object")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in raw:
        if key not in names:
            raise ArtifactError(f"{where}.{key}: unknown field")
    values: dict[str, Any] = {}
    for name in names:
        if name not in raw:
            raise ArtifactError(f"{where}.{name}: missing")
        values[name] = _value(hints[name], raw[name], f"{where}.{name}")
    return kind(**values)


def _value(hint: Any, raw: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return _parse(hint, raw, where)
    if get_origin(hint) is tuple and isinstance(raw, list):
        return tuple(_value(get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(raw))
    if hint == dict[str, str] and isinstance(raw, dict) and all(isinstance(item, str) for item in raw.values()):
        return dict(raw)
    return _scalar(hint, raw, where)


def _scalar(hint: Any, raw: Any, where: str) -> Any:
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    if hint is int and isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return raw
    if hint is str and isinstance(raw, str):
        return raw
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [member.value for member in hint]
        if isinstance(raw, str) and raw in choices:
            return hint(raw)
        raise ArtifactError(f"{where}: {raw!r} is not one of {', '.join(choices)}")
    raise ArtifactError(f"{where}: {raw!r} is not a valid {getattr(hint, '__name__', hint)}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `engine.json` as the last file of an engine folder."""
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    (folder / layout.MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        ArtifactError: missing, unreadable, another format version, or a field that is not what it should be.
    """
    path = folder / layout.MANIFEST_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run `trident build` into this repository first") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(f"format_version: this Trident reads {FORMAT_VERSION}, not {version!r}; build again")
    manifest = _parse(Manifest, raw, "engine")
    _check_limits(manifest)
    return manifest


def _check_limits(manifest: Manifest) -> None:
    limits, cache = manifest.limits, manifest.kv_cache
    if min(limits.max_num_seqs, limits.max_seq_len, cache.block_size, cache.num_blocks) < 1:
        raise ArtifactError("engine.limits and engine.kv_cache: every limit must be at least 1; build again")
    if limits.max_num_tokens < limits.max_num_seqs:
        raise ArtifactError(
            f"engine.limits.max_num_tokens: {limits.max_num_tokens} is less than max_num_seqs {limits.max_num_seqs}"
        )
    num_tokens = cache.num_blocks * cache.block_size
    if num_tokens < limits.max_seq_len:
        raise ArtifactError(
            f"engine.kv_cache.num_blocks: the cache holds {num_tokens} tokens, max_seq_len is {limits.max_seq_len}"
        )
