"""The tensors of a plan, checked against the engine's manifest.

Owns the names, types and bounds that a network must have. Never runs one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.tensorrt import names
from trident_backend.engine.tensorrt.names import DECODE_PROFILE, INPUTS, LOGIT_ROWS, LOGITS, PREFILL_PROFILE, TOKEN_IDS
from trident_backend.engine.tensorrt.plan import Plan, TensorInfo
from trident_backend.engine.tensorrt.sampling_plans import SamplingPlans
from trident_backend.engine.tensorrt.slot_pool import SlotTensor
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import KVKind, Manifest

_BYTES = {"float": 4, "half": 2, "bf16": 2}
_TYPES = {"f32": "float", "f16": "half", "bf16": "bf16"}


@dataclass(frozen=True)
class NetworkLayout:
    """The facts about a network that the host needs.

    Args:
        caches: one slot of each cache, by the input's name.
        slot_len: positions of a slot, with the one that is scratch.
        vocab_size: width of a row of logits.
    """

    caches: dict[str, SlotTensor]
    slot_len: int
    vocab_size: int


def read_layout(plan: Plan, manifest: Manifest) -> NetworkLayout:
    """Read a plan's layout, check it and return it.

    Raises:
        ArtifactError: it is not what the manifest says, or not what this host runs.
    """
    tensors = plan.tensors
    _check_names(tensors, manifest)
    caches = {name: _slot(name, tensors[name], manifest) for name in _cache_names(manifest)}
    layout = NetworkLayout(caches, next(iter(caches.values())).slot_len, tensors[LOGITS].shape[1])
    for field, stated, found in _facts(layout, manifest):
        if stated != found:
            raise ArtifactError(f"{field}: the manifest says {stated}, the plan has {found}; build again")
    _check_profiles(plan, manifest)
    return layout


def check_sampling(sampling: SamplingPlans, manifest: Manifest) -> None:
    """Compare sampling's plans with the manifest.

    Raises:
        ArtifactError: they are for other logits.
    """
    vocab_size, max_num_tokens = manifest.architecture.vocab_size, manifest.limits.max_num_tokens
    if sampling.vocab_size != vocab_size:
        raise ArtifactError(
            f"architecture.vocab_size: the manifest says {vocab_size}, sampling's plans have {sampling.vocab_size}; "
            "build again"
        )
    if sampling.max_rows < max_num_tokens:
        raise ArtifactError(
            f"limits.max_num_tokens: a step may have {max_num_tokens} rows of logits, sampling's plans take "
            f"{sampling.max_rows}; build again"
        )


def _cache_names(manifest: Manifest) -> Iterator[str]:
    for layer in range(manifest.architecture.num_layers):
        yield from names.caches(layer)


def _check_names(tensors: dict[str, TensorInfo], manifest: Manifest) -> None:
    caches = list(_cache_names(manifest))
    outputs = (LOGITS, *map(names.updated, caches))
    wanted = {**dict.fromkeys((*INPUTS, *caches), True), **dict.fromkeys(outputs, False)}
    found = {name: tensor.is_input for name, tensor in tensors.items()}
    if found != wanted:
        odd = sorted(name for name, is_input in {*wanted.items()} ^ {*found.items()})
        raise ArtifactError(
            f"architecture.num_layers: {manifest.architecture.num_layers} layers do not have the plan's tensors "
            f"({', '.join(dict.fromkeys(odd))}); build again"
        )
    if tensors[LOGITS].dtype != "float":
        raise ArtifactError(f"the plan's logits are {tensors[LOGITS].dtype}, not float; build again")


def _slot(name: str, tensor: TensorInfo, manifest: Manifest) -> SlotTensor:
    stated = manifest.precision.kv_cache
    if tensor.dtype != _TYPES.get(stated):
        raise ArtifactError(f"precision.kv_cache: the manifest says {stated}, {name} is {tensor.dtype}; build again")
    _, num_heads, slot_len, head_dim = tensor.shape
    slot = SlotTensor(num_heads, slot_len, head_dim, _BYTES[tensor.dtype])
    if slot.num_bytes % ALIGNMENT:
        raise ArtifactError(
            f"kv_cache.block_size: a slot of {name} has {slot.num_bytes} bytes, which must be a multiple of "
            f"{ALIGNMENT} so that each slot begins where TensorRT can read it; build again"
        )
    return slot


def _facts(layout: NetworkLayout, manifest: Manifest) -> Iterator[tuple[str, object, object]]:
    """Yield each field, what the manifest says, and what the plan has."""
    cache = manifest.kv_cache
    yield "architecture.vocab_size", manifest.architecture.vocab_size, layout.vocab_size
    yield "kv_cache.kind", cache.kind.value, KVKind.SLOTS.value
    yield "kv_cache.block_size", cache.block_size, layout.slot_len - 1
    yield "kv_cache.block_bytes", cache.block_bytes, sum(slot.num_bytes for slot in layout.caches.values())


def _check_profiles(plan: Plan, manifest: Manifest) -> None:
    if plan.num_profiles <= PREFILL_PROFILE:
        raise ArtifactError(f"the plan has {plan.num_profiles} optimization profile, not 2; build again")
    limits, num_slots = manifest.limits, manifest.kv_cache.num_blocks
    chunk = min(limits.max_num_tokens, limits.max_seq_len, manifest.kv_cache.block_size)
    needs = (
        ("kv_cache.num_blocks", DECODE_PROFILE, TOKEN_IDS, (num_slots, 1)),
        ("kv_cache.num_blocks", DECODE_PROFILE, LOGIT_ROWS, (num_slots,)),
        ("limits.max_num_tokens", PREFILL_PROFILE, TOKEN_IDS, (1, chunk)),
        ("limits.max_num_tokens", PREFILL_PROFILE, LOGIT_ROWS, (chunk,)),
    )
    for field, profile, name, shape in needs:
        _, largest = plan.bounds(name, profile)
        if any(need > most for need, most in zip(shape, largest, strict=True)):
            raise ArtifactError(
                f"{field}: calls of {name} {list(shape)} are needed, profile {profile} of the plan takes "
                f"{list(largest)}; build again"
            )
