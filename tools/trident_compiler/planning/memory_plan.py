"""The memory plan: limits and KV cache of an engine, from what is wanted, what the network needs and what is free.

Owns every default and refusal about caches made of blocks. Never measures a machine, never compiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trident_ensemble.contract.errors import PlanError
from trident_ensemble.contract.manifest import KVKind

#: A step of 512 prompt tokens already runs at the full rate of matrix multiplication on CPUs, and longer steps only
#: delay the next token of all other sequences.
DEFAULT_MAX_NUM_TOKENS = 512
DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_MAX_SEQ_LEN = 8192
#: Sequences are not made shorter than this unless it is asked for.
LEAST_SEQ_LEN = 512
#: The cache's share of what weights leave free, when nothing is asked; the rest is for activations, tokenizers, page
#: cache and other processes.
DEFAULT_CACHE_SHARE = 0.4

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]i?)?b", re.IGNORECASE)
_TOKENS = re.compile(r"(\d{1,15})\s*(?:t|tokens?)", re.IGNORECASE)
_SHARE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*%")
#: Sequences and tokens are counted in int32.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class CacheSize:
    """A wanted size of the KV cache; exactly one is set."""

    num_bytes: int | None = None
    num_tokens: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class LimitsRequest:
    """Limits as the user asked for them; None is the default."""

    max_num_seqs: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    cache: CacheSize | None = None


@dataclass(frozen=True)
class MemoryRequirements:
    """The memory that a network needs.

    Args:
        weights_bytes: all weights in their formats, as the engine's file holds them.
        resident_bytes: what the engine takes beside the cache once it runs: on CPUs the weights, packed for them, on
            GPUs all that it allocates.
        block_size: tokens in one KV block.
        block_bytes: one block of keys and values through all layers.
        max_position_embeddings: the longest context of the checkpoint.
    """

    weights_bytes: int
    resident_bytes: int
    block_size: int
    block_bytes: int
    max_position_embeddings: int


@dataclass(frozen=True)
class MemoryKind:
    """The kind of memory that an engine runs in: what is usual there, and how messages speak of it.

    Args:
        max_num_tokens: of a step, where nothing is asked.
        cache_share: of what the rest leaves free that is the cache's at most, where nothing is asked.
        contents: what lies there beside the cache.
        remedy: what to do where that is too much.
    """

    max_num_tokens: int
    cache_share: float
    contents: str
    remedy: str


CPU_MEMORY = MemoryKind(
    DEFAULT_MAX_NUM_TOKENS,
    DEFAULT_CACHE_SHARE,
    "weights",
    "quantize them (--weights int8 or int4) or use a larger machine",
)


@dataclass(frozen=True)
class MemoryPlan:
    """The limits and the cache that fit.

    Args:
        free_bytes: of the memory that the engine will run in.
        weights_bytes: all weights in their formats, as the engine's files hold them.
        resident_bytes: what the engine takes beside the cache once it runs, weights included.
        kv_kind: whether the cache is made of blocks or of slots.
        block_size: tokens in one block, or slot.
        block_bytes: one block, or slot, of keys and values through all layers.
        num_blocks: blocks, or slots.
    """

    free_bytes: int
    weights_bytes: int
    resident_bytes: int
    max_num_seqs: int
    max_num_tokens: int
    max_seq_len: int
    kv_kind: KVKind
    block_size: int
    block_bytes: int
    num_blocks: int

    @property
    def supports_draft_tokens(self) -> bool:
        """Whether the draft tokens of several sequences are verified in one pass; slots take a pass for each."""
        return self.kv_kind is KVKind.BLOCKS

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self.num_blocks * self.block_bytes

    @property
    def cache_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return self.num_blocks * self.block_size

    @property
    def full_sequences(self) -> int:
        """Sequences of full length that the cache holds at once."""
        return self.num_blocks // blocks_for(self.max_seq_len, self.block_size)


@dataclass(frozen=True)
class TakenMemory:
    """The memory that other models will take where a model is to be served.

    Args:
        cpu: bytes of this machine's memory.
        gpus: bytes of a GPU's memory, by CUDA's number.
    """

    cpu: int = 0
    gpus: Mapping[int, int] = field(default_factory=dict)

    def most_of(self, gpus: Iterable[int]) -> int:
        """Return the bytes that are taken on that of some GPUs on which they are most."""
        return max((self.gpus.get(gpu, 0) for gpu in gpus), default=0)


def parse_bytes(option: str, text: str) -> int:
    """Return the number of bytes that a text such as `24GiB` stands for.

    Raises:
        PlanError: it is not a number of bytes; names the option.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise PlanError(f"{option}: {text!r} is not a size; give bytes, such as 24GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def parse_cache_size(text: str) -> CacheSize:
    """Return the size that a text such as `2GiB`, `32768 tokens`, `32768t` or `50%` stands for.

    Raises:
        PlanError: none of these.
    """
    if _BYTES.fullmatch(text.strip()):
        return CacheSize(num_bytes=parse_bytes("--kv-cache", text))
    if match := _TOKENS.fullmatch(text.strip()):
        return CacheSize(num_tokens=int(match[1]))
    if (match := _SHARE.fullmatch(text.strip())) and 0 < float(match[1]) <= 100:
        return CacheSize(share=float(match[1]) / 100)
    raise PlanError(
        f"--kv-cache: {text!r} is not a size; give bytes (2GiB), tokens (32768t) or a share of free memory (50%)"
    )


def make_plan(
    wanted: LimitsRequest, needs: MemoryRequirements, free_bytes: int, kind: MemoryKind = CPU_MEMORY
) -> MemoryPlan:
    """Return limits and a KV pool that fit into `free_bytes`, by default of a machine's own memory.

    Raises:
        PlanError: something wanted is out of bounds or does not fit; gives the numbers and what to change.
    """
    room = free_bytes - needs.resident_bytes
    if room < needs.block_bytes:
        raise PlanError(
            f"{kind.contents}: they take {size(needs.resident_bytes)} and {size(free_bytes)} of memory is free; "
            f"{kind.remedy}"
        )
    longest = needs.max_position_embeddings
    max_num_seqs, max_num_tokens = step_limits(wanted, longest, kind.max_num_tokens)
    max_seq_len = wanted.max_seq_len or min(longest, DEFAULT_MAX_SEQ_LEN)
    most_useful = max_num_seqs * blocks_for(max_seq_len, needs.block_size)
    default = min(most_useful, int(room * kind.cache_share) // needs.block_bytes)
    num_blocks = _num_blocks(wanted.cache, needs, room, default)
    if num_blocks * needs.block_bytes > room:
        raise PlanError(
            f"--kv-cache: {size(num_blocks * needs.block_bytes)} beside {size(needs.resident_bytes)} of "
            f"{kind.contents} is more than the {size(free_bytes)} of free memory; {size(room)} is the most"
        )
    num_tokens = num_blocks * needs.block_size
    if wanted.cache is not None and wanted.cache.num_tokens is not None:
        num_tokens = wanted.cache.num_tokens
    if wanted.max_seq_len is None:
        max_seq_len = max(min(max_seq_len, num_tokens), min(LEAST_SEQ_LEN, max_seq_len))
    if num_tokens < max_seq_len:
        least = blocks_for(max_seq_len, needs.block_size) * needs.block_bytes
        remedy = "set --max-seq-len for shorter ones" if wanted.max_seq_len is None else "lower --max-seq-len"
        raise PlanError(
            f"--kv-cache: {size(num_blocks * needs.block_bytes)} holds {num_tokens} tokens ({num_blocks} blocks of "
            f"{needs.block_size}), not one sequence of {max_seq_len}, which takes {size(least)}; "
            f"raise --kv-cache or {remedy}{unit_note(wanted.cache)}"
        )
    if wanted.max_num_seqs is None:
        max_num_seqs = min(max_num_seqs, num_blocks)
    return MemoryPlan(
        free_bytes=free_bytes,
        weights_bytes=needs.weights_bytes,
        resident_bytes=needs.resident_bytes,
        max_num_seqs=max_num_seqs,
        max_num_tokens=max_num_tokens,
        max_seq_len=max_seq_len,
        kv_kind=KVKind.BLOCKS,
        block_size=needs.block_size,
        block_bytes=needs.block_bytes,
        num_blocks=num_blocks,
    )


def unit_note(cache: CacheSize | None) -> str:
    """Return a note that explains `t`, where a size in tokens was so small that tebibytes may have been meant."""
    if cache is None or cache.num_tokens is None:
        return ""
    return f" (t counts tokens; if tebibytes were meant, write {cache.num_tokens}TiB)"


def step_limits(wanted: LimitsRequest, longest: int, default_num_tokens: int) -> tuple[int, int]:
    """Return the most sequences and tokens of one step, before memory is considered.

    Args:
        wanted: what was asked for.
        longest: positions of the checkpoint.
        default_num_tokens: max_num_tokens, where nothing is asked.

    Raises:
        PlanError: something wanted is out of bounds.
    """
    for option, value in (
        ("--max-num-seqs", wanted.max_num_seqs),
        ("--max-num-tokens", wanted.max_num_tokens),
        ("--max-seq-len", wanted.max_seq_len),
    ):
        if value is not None and value < 1:
            raise PlanError(f"{option}: must be at least 1, not {value}")
        if value is not None and value > _MOST:
            raise PlanError(f"{option}: must be at most {_MOST}")
    if wanted.max_seq_len is not None and wanted.max_seq_len > longest:
        raise PlanError(f"--max-seq-len: {wanted.max_seq_len} is more than the checkpoint's {longest} positions")
    max_num_tokens = wanted.max_num_tokens or max(default_num_tokens, wanted.max_num_seqs or 0)
    max_num_seqs = wanted.max_num_seqs or min(DEFAULT_MAX_NUM_SEQS, max_num_tokens)
    if max_num_tokens < max_num_seqs:
        raise PlanError(
            f"--max-num-tokens: {max_num_tokens} cannot hold one token of each of {max_num_seqs} sequences; "
            "raise it or lower --max-num-seqs"
        )
    return max_num_seqs, max_num_tokens


def _num_blocks(cache: CacheSize | None, needs: MemoryRequirements, room: int, default: int) -> int:
    if cache is None:
        return default
    if cache.num_tokens is not None:
        return blocks_for(cache.num_tokens, needs.block_size)
    num_bytes = cache.num_bytes if cache.num_bytes is not None else int(room * (cache.share or 0))
    return num_bytes // needs.block_bytes


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


def size(num_bytes: int) -> str:
    """Return bytes as people read them, such as `1.50 GiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name}"
    return f"{num_bytes} B"
