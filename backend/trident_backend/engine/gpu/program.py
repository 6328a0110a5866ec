"""What an engine of our own kernels computes: kernels, values, weights, and the order of launches.

Owns the values that the compiler writes into `program.json` and the host reads. Never launches anything, and knows no
model: a value is a number of columns, a launch is a kernel's name with arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

#: Bytes of a number, by Triton's names of types.
ITEM_BYTES = {"fp32": 4, "i32": 4, "i64": 8, "bf16": 2, "fp16": 2, "i8": 1, "u8": 1, "fp8e4nv": 1}


class Count(str, Enum):
    """A unit that the rows of a value, and the sizes of a grid, are counted in."""

    #: Tokens of the step, padded to the size that is launched.
    TOKENS = "tokens"
    #: Rows that get logits, padded to the size that is launched.
    ROWS = "rows"
    #: Nothing: a fixed number.
    ONE = "one"


class StepInput(str, Enum):
    """An int32 array that the host uploads for each step."""

    TOKEN_IDS = "token_ids"  # noqa: S105
    POSITION_IDS = "position_ids"
    #: Rows of the packed axis that get logits.
    LOGIT_ROWS = "logit_rows"


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Args:
        file: the cubin's path in the engine's folder.
        entry: the function's name in the cubin.
        function: its source, `module.function` in `trident_compiler.cuda.kernels`.
        num_threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        parameters: names and Triton's types, such as `*bf16`, `i32` or `fp32`, in the order of the call.
        constants: what was fixed when it was compiled, by name.
    """

    file: str
    entry: str
    function: str
    num_threads: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]
    constants: Mapping[str, int | float | bool]


@dataclass(frozen=True)
class Value:
    """An intermediate result on the device, `[rows, width]`, contiguous.

    Args:
        name: unique.
        count: what its rows are.
        width: numbers in a row.
        dtype: Triton's name of their type, such as `bf16` or `fp32`.
        offset: bytes from the beginning of the arena, where values lie that do not live at one time.
    """

    name: str
    count: Count
    width: int
    dtype: str
    offset: int = 0


@dataclass(frozen=True)
class StoredWeight:
    """A weight in the weights' file.

    Args:
        name: unique.
        dtype: Triton's name of the type.
        shape: of the values, in numbers of that type; int4 are bytes of two.
        offset: bytes from the beginning of the file, a multiple of 256.
        num_bytes: of it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class Kind(str, Enum):
    """A kind of argument of a launch."""

    #: The address of a value, a weight, or a step's input, by its name.
    VALUE = "value"
    WEIGHT = "weight"
    INPUT = "input"
    #: The address of the logits, float32 `[rows, vocab]`.
    LOGITS = "logits"
    #: A number.
    NUMBER = "number"
    #: The step's tokens or rows, padded: an int32.
    COUNT = "count"
    #: An address that the kernel does not read.
    NOTHING = "nothing"


@dataclass(frozen=True)
class Argument:
    """An argument of a launch.

    Args:
        kind: which of these.
        name: of the value, the weight, the input (`StepInput`) or the count (`Count`).
        number: where it is one.
    """

    kind: Kind
    name: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class Extent:
    """The size of a grid's axis: `times * ceil(count / tile)`, with a count of 1 for `Count.ONE`."""

    count: Count = Count.ONE
    tile: int = 1
    times: int = 1

    def of(self, counts: Mapping[Count, int]) -> int:
        """Return the size for the counts of a step; `Count.ONE` need not be among them."""
        return self.times * -(-counts.get(self.count, 1) // self.tile)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: its name.
        grid: the sizes of its three axes.
        arguments: by the names of the kernel's parameters, all of them.
        least: the launch is left out of steps whose count of tokens (in the body) or rows (in the head) is less.
        most: and of those whose count is more; 0 for no bound.
    """

    kernel: str
    grid: tuple[Extent, Extent, Extent]
    arguments: Mapping[str, Argument]
    least: int = 0
    most: int = 0

    def takes(self, count: int) -> bool:
        """Return whether a step of so many tokens, or rows, has this launch."""
        return self.least <= count and (not self.most or count <= self.most)


@dataclass(frozen=True)
class AttentionKind:
    """The attention of layers that are alike, for which work is divided once a step.

    Args:
        num_kv_heads: heads of keys and values.
        group: query heads that share one of them.
        head_dim: numbers of a query's and a key's head.
        v_head_dim: numbers of a value's head.
        window: a token sees the last so many tokens, itself included; 0 is all.
        few_rows: rows (tokens x heads of a part) of a small tile.
        many_rows: rows of a large tile.
        write: the kernel `attention.write_cache`.
        few: `attention.attend` of small tiles.
        many: `attention.attend` of large tiles.
        merge_few: `attention.merge` of small tiles.
        merge_many: `attention.merge` of large tiles.
        head_parts: into which a group's query heads are divided, each for programs of its own.
    """

    num_kv_heads: int
    group: int
    head_dim: int
    v_head_dim: int
    window: int
    few_rows: int
    many_rows: int
    write: str
    few: str
    many: str
    merge_few: str
    merge_many: str
    head_parts: int = 1

    @property
    def num_programs(self) -> int:
        """Programs of an item, or of a merge: the second axis of their grids."""
        return self.num_kv_heads * self.head_parts

    @property
    def few_len(self) -> int:
        """Tokens of a small tile, at most."""
        return self.few_rows // (self.group // self.head_parts)

    @property
    def many_len(self) -> int:
        """Tokens of a large tile, at most."""
        return self.many_rows // (self.group // self.head_parts)


@dataclass(frozen=True)
class AttentionCall:
    """The attention of one layer: keys and values go to the cache, then every token attends.

    Args:
        layer: whose cache.
        kind: index among the program's kinds.
        query: the value `[tokens, heads * head_dim]`.
        key: `[tokens, kv_heads * head_dim]`.
        value: `[tokens, kv_heads * v_head_dim]`.
        out: `[tokens, heads * v_head_dim]`.
        arguments: the parameters of `attention.attend` and `write_cache` that are the layer's: `scale`, `softcap`,
            `sinks`, `slopes`, `key_factor`, `value_factor`.
    """

    layer: int
    kind: int
    query: str
    key: str
    value: str
    out: str
    arguments: Mapping[str, Argument]


@dataclass(frozen=True)
class SamplingLimits:
    """The limits of sampling's kernels, as those of `SamplingPlans`.

    Args:
        max_rows: rows of the logits' buffer.
        max_chosen: rows of one run at most.
        max_pairs: pairs of a row and a token of one run at most.
        num_ties: tokens that `find_ties` finds at most.
        num_table_rows: of the table of penalties.
        top_k: the counts that there are `top_k` kernels for, ascending.
    """

    max_rows: int
    max_chosen: int
    max_pairs: int
    num_ties: int
    num_table_rows: int
    top_k: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The whole of it.

    Args:
        vocab_size: width of the logits.
        max_seq_len: positions that tables of cosines and sines are for.
        arena_bytes: of the arena that the values lie in.
        values: all of them.
        weights: all of them.
        attention_kinds: of the layers.
        body: the launches from token ids to what the head needs, counted by tokens.
        head: the launches from there to the logits, counted by rows.
        cache_dtype: Triton's type of the KV cache.
        sampling: limits of its kernels.
    """

    vocab_size: int
    max_seq_len: int
    arena_bytes: int
    values: tuple[Value, ...]
    weights: tuple[StoredWeight, ...]
    attention_kinds: tuple[AttentionKind, ...]
    body: tuple[Launch | AttentionCall, ...]
    head: tuple[Launch, ...]
    cache_dtype: str
    sampling: SamplingLimits
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
