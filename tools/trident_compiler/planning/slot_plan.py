"""The memory plan of an engine on GPUs, whose KV cache has one slot for each sequence, as long as the longest.

Owns the defaults and the refusals about slots. Pure arithmetic: never measures a GPU, never compiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.planning.memory_plan import (
    DEFAULT_MAX_SEQ_LEN,
    LEAST_SEQ_LEN,
    CacheSize,
    LimitsRequest,
    MemoryPlan,
    size,
    step_limits,
    unit_note,
)
from trident_ensemble.contract.errors import PlanError
from trident_ensemble.contract.manifest import KVKind

#: A GPU multiplies at its full rate from some hundred tokens on; more of a prompt in one step saves launches.
DEFAULT_MAX_NUM_TOKENS = 2048
#: The cache's share of what the rest leaves free, when nothing is asked: estimates may turn out too small.
DEFAULT_CACHE_SHARE = 0.9
#: Bytes for each token of a step and each position of a slot: the mask, and the comparisons that make it.
_MASK_BYTES = 3
#: Positions of a slot that hold no token of its sequence.
SCRATCH_POSITIONS = 1


@dataclass(frozen=True)
class SlotNeeds:
    """The memory that a network needs on each device.

    Args:
        weights_bytes: weights in their formats, as the plan holds them.
        fixed_bytes: what the device takes for any network: its context, kernels, work space.
        step_token_bytes: activations and logits, for each token that a step may have.
        score_bytes: what attention holds of each token of a step and each position of a slot, beside the mask.
        position_bytes: one position of a slot: a token's keys and values through all layers.
        multiple: positions of a slot are a multiple of so many, so that each begins where the GPU can read it.
        max_position_embeddings: the longest context of the checkpoint.
    """

    weights_bytes: int
    fixed_bytes: int
    step_token_bytes: int
    position_bytes: int
    multiple: int
    max_position_embeddings: int
    score_bytes: int = 0


def make_slot_plan(wanted: LimitsRequest, needs: SlotNeeds, free_bytes: int) -> MemoryPlan:
    """Return limits and slots that fit into `free_bytes`.

    There are as many slots as sequences in a step: one more could never be computed.

    Raises:
        PlanError: something wanted is out of bounds or does not fit; gives the numbers and what to change.
    """
    longest = needs.max_position_embeddings
    max_num_seqs, max_num_tokens = step_limits(wanted, longest, DEFAULT_MAX_NUM_TOKENS)
    max_seq_len = wanted.max_seq_len or min(longest, DEFAULT_MAX_SEQ_LEN)
    token_bytes = needs.step_token_bytes + (_MASK_BYTES + needs.score_bytes) * max_seq_len
    resident = needs.weights_bytes + needs.fixed_bytes + (max_num_tokens + 1) * token_bytes
    room = free_bytes - resident
    if room < needs.position_bytes * (1 + SCRATCH_POSITIONS):
        raise PlanError(
            f"weights: they take {size(needs.weights_bytes)}, a step of {max_num_tokens} tokens "
            f"{size(resident - needs.weights_bytes)}, and {size(free_bytes)} of the GPU's memory is free; quantize the "
            "weights (--weights int8 or int4), lower --max-num-tokens, or take a larger GPU"
        )
    least = wanted.max_num_seqs or 1
    cache_bytes = _cache_bytes(wanted.cache, room)
    num_tokens = cache_bytes // needs.position_bytes
    if wanted.cache is not None and wanted.cache.num_tokens is not None:
        num_tokens = wanted.cache.num_tokens
    if wanted.max_seq_len is None:
        # The slots that are asked for, one at least, come before the length that is not.
        positions = cache_bytes // needs.position_bytes // least // needs.multiple * needs.multiple
        shorter = min(positions - SCRATCH_POSITIONS, num_tokens // least)
        max_seq_len = max(min(max_seq_len, shorter), min(LEAST_SEQ_LEN, max_seq_len))
    slot_len = -(-(max_seq_len + SCRATCH_POSITIONS) // needs.multiple) * needs.multiple
    slot_bytes = slot_len * needs.position_bytes
    num_slots = min(cache_bytes // slot_bytes, num_tokens // max_seq_len)
    if num_slots < least:
        raise PlanError(
            f"--kv-cache: {least} slots of {max_seq_len} tokens are wanted, each {size(slot_bytes)}; "
            f"{num_slots} fit into {size(cache_bytes)} and {num_tokens} tokens; lower --max-seq-len or --max-num-seqs, "
            f"raise --kv-cache, or quantize the weights (--weights int8 or int4){unit_note(wanted.cache)}"
        )
    num_slots = wanted.max_num_seqs or min(num_slots, max_num_seqs)
    return MemoryPlan(
        free_bytes=free_bytes,
        weights_bytes=needs.weights_bytes,
        resident_bytes=resident,
        max_num_seqs=num_slots,
        max_num_tokens=max_num_tokens,
        max_seq_len=max_seq_len,
        kv_kind=KVKind.SLOTS,
        block_size=slot_len - SCRATCH_POSITIONS,
        block_bytes=slot_bytes,
        num_blocks=num_slots,
    )


def _cache_bytes(cache: CacheSize | None, room: int) -> int:
    """Return the bytes that slots may take."""
    if cache is None:
        return int(room * DEFAULT_CACHE_SHARE)
    if cache.num_tokens is not None:
        return room
    num_bytes = cache.num_bytes if cache.num_bytes is not None else int(room * (cache.share or 0))
    if num_bytes > room:
        raise PlanError(
            f"--kv-cache: {size(num_bytes)} is more than the {size(room)} that weights and a step's activations leave "
            "free on the GPU"
        )
    return num_bytes
