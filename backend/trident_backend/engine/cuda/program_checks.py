"""The checks that a host can run a program whose names hold together: sizes, constants and arguments fit each other.

Owns what must be known before anything is uploaded. Never opens a file, and never looks at the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import asdict
from itertools import pairwise

from trident_backend.engine.cuda.program_names import ATTENTION_ARGUMENTS
from trident_backend.engine.cuda.sampling_launches import NUMBERS, PARTS, addresses_of, operations_of
from trident_backend.engine.gpu.names import Sampling
from trident_backend.engine.gpu.program import (
    ITEM_BYTES,
    Argument,
    AttentionCall,
    AttentionKind,
    Count,
    Kernel,
    Kind,
    Launch,
    Program,
)
from trident_ensemble.contract.errors import ArtifactError

#: The types that a KV cache may have.
CACHE_TYPES = frozenset({"bf16", "fp16", "fp32", "fp8e4nv"})
_ADDRESSES = frozenset({Kind.VALUE, Kind.WEIGHT, Kind.INPUT, Kind.LOGITS, Kind.NOTHING})
_MAX_THREADS, _MAX_SHARED_BYTES, _MAX_INT32, _MAX_FLOAT = 1024, 2**20, 2**31 - 1, 3.4028235e38
#: What the host gives the kernels of attention, beside what a layer says.
_CACHE = {"key_cache", "value_cache"}
_PARTIALS = {"out", "partial_out", "partial_stats"}
_LAYER_ADDRESSES = frozenset({"sinks", "slopes"})
_FACTORS = {"key_factor", "value_factor"}
_HOST_ADDRESSES: Mapping[str, Set[str]] = {
    "attention.write_cache": {*_CACHE, "keys", "values", "places"},
    "attention.attend": {*_CACHE, *_PARTIALS, *_LAYER_ADDRESSES, "queries", "tables", "items"},
    "attention.merge": {*_PARTIALS, "merges"},
    "attention.copy_blocks": {"pool", "geometry", "copies"},
}
_HOST_NUMBERS: Mapping[str, Set[str]] = {
    "attention.write_cache": _FACTORS,
    "attention.attend": {*(ATTENTION_ARGUMENTS - _LAYER_ADDRESSES), "window"},
    "attention.merge": set(),
    "attention.copy_blocks": {"num_copies"},
}


def check_program(program: Program) -> None:
    """Refuse a program that a host cannot run, or that would touch memory that is not its own.

    Raises:
        ArtifactError: names the field.
    """
    _check_sizes(program)
    for name, kernel in program.kernels.items():
        _check_kernel(kernel, f"program.kernels.{name}")
    for i, kind in enumerate(program.attention_kinds):
        _check_kind(program, kind, f"program.attention_kinds[{i}]")
    for part, counted in (("body", Count.TOKENS), ("head", Count.ROWS)):
        for i, each in enumerate(getattr(program, part)):
            where = f"program.{part}[{i}]"
            if isinstance(each, Launch):
                parameters = program.kernels[each.kernel].parameters
                _check_arguments(each.arguments, dict(parameters), where, counted)
            else:
                _check_attention(program, each, where)
    _check_sampling(program)


def _check_sizes(program: Program) -> None:
    _least(program.vocab_size, 1, "program.vocab_size")
    if program.cache_dtype not in CACHE_TYPES:
        raise ArtifactError(f"program.cache_dtype: {program.cache_dtype!r} is no type of a KV cache")
    for i, value in enumerate(program.values):
        _check_type(value.dtype, f"program.values[{i}]")
    for i, weight in enumerate(program.weights):
        _check_type(weight.dtype, f"program.weights[{i}]")
        num_bytes = math.prod(weight.shape) * ITEM_BYTES[weight.dtype]
        _equal(weight.num_bytes, num_bytes, f"program.weights[{i}].num_bytes")
    if not program.attention_kinds:
        raise ArtifactError("program.attention_kinds: there is none; build again")


def _check_kernel(kernel: Kernel, where: str) -> None:
    _least(kernel.num_threads, 1, f"{where}.num_threads")
    for field, most in (("num_threads", _MAX_THREADS), ("shared_bytes", _MAX_SHARED_BYTES)):
        if getattr(kernel, field) > most:
            raise ArtifactError(f"{where}.{field}: {getattr(kernel, field)}, at most {most} are possible; build again")
    names = [name for name, _ in kernel.parameters]
    if len(names) != len(set(names)):
        raise ArtifactError(f"{where}.parameters: a name is there twice; build again")


def _check_kind(program: Program, kind: AttentionKind, where: str) -> None:
    for field, size in asdict(kind).items():
        if isinstance(size, int):
            _least(size, 0 if field == "window" else 1, f"{where}.{field}")
    if kind.group % kind.head_parts:
        raise ArtifactError(f"{where}.head_parts: {kind.head_parts} do not divide {kind.group} heads; build again")
    _least(kind.few_rows, kind.group // kind.head_parts, f"{where}.few_rows")
    _least(kind.many_rows, kind.few_rows, f"{where}.many_rows")
    if kind.window > _MAX_INT32:
        raise ArtifactError(f"{where}.window: {kind.window} is more than {_MAX_INT32}; build again")
    heads = {"KV_HEADS": kind.num_kv_heads, "DIM_V": kind.v_head_dim}
    cached, grouped = {**heads, "DIM": kind.head_dim}, {**heads, "GROUP": kind.group, "PARTS": kind.head_parts}
    few, many = {"ROWS": kind.few_rows}, {"ROWS": kind.many_rows}
    for field, function, constants in (
        ("write", "attention.write_cache", cached),
        ("few", "attention.attend", {**cached, **grouped, **few}),
        ("many", "attention.attend", {**cached, **grouped, **many}),
        ("merge_few", "attention.merge", {**grouped, **few}),
        ("merge_many", "attention.merge", {**grouped, **many}),
    ):
        name = getattr(kind, field)
        kernel, found = program.kernels[name], f"program.kernels.{name}"
        _equal(kernel.function, function, f"{found}.function")
        _check_parameters(kernel, found, _HOST_ADDRESSES[function], _HOST_NUMBERS[function])
        if function != "attention.merge":
            _least(kernel.constants.get("BLOCK", 0), 1, f"{found}.constants.BLOCK")
            for cache in ("key_cache", "value_cache"):
                _equal(dict(kernel.parameters)[cache], f"*{program.cache_dtype}", f"{found}.parameters.{cache}")
        for constant, size in constants.items():
            _equal(kernel.constants.get(constant), size, f"{found}.constants.{constant}")
        if function == "attention.attend" and kind.window and not kernel.constants.get("WINDOW"):
            raise ArtifactError(f"{found}.constants.WINDOW: the kernel has no window, {where} has; build again")


def _check_attention(program: Program, call: AttentionCall, where: str) -> None:
    kind = program.attention_kinds[call.kind]
    values = {value.name: value for value in program.values}
    num_heads = kind.num_kv_heads * kind.group
    for field, width in (
        ("query", num_heads * kind.head_dim),
        ("key", kind.num_kv_heads * kind.head_dim),
        ("value", kind.num_kv_heads * kind.v_head_dim),
        ("out", num_heads * kind.v_head_dim),
    ):
        value = values[getattr(call, field)]
        _equal((value.count, value.width), (Count.TOKENS, width), f"{where}.{field}: {value.name}")
    types = dict(program.kernels[kind.write].parameters) | dict(program.kernels[kind.few].parameters)
    given = {name: argument for name, argument in call.arguments.items() if name in types}
    _check_arguments(given, types, where, None)


def _check_arguments(
    arguments: Mapping[str, Argument], types: Mapping[str, str], where: str, counted: Count | None
) -> None:
    for name, argument in arguments.items():
        field, dtype = f"{where}.arguments.{name}", types[name]
        if dtype.startswith("*") != (argument.kind in _ADDRESSES):
            raise ArtifactError(f"{field}: {argument.kind.value} where the kernel has {dtype!r}; build again")
        if argument.kind is Kind.COUNT and (counted is None or argument.name != counted.value):
            counts = "nothing is" if counted is None else f"{counted.value} are"
            raise ArtifactError(f"{field}: a number of {argument.name}, where {counts} counted; build again")
        if argument.kind is Kind.NUMBER and not _fits(argument.number, dtype):
            raise ArtifactError(f"{field}.number: {argument.number} is no {dtype}; build again")


def _fits(number: float, dtype: str) -> bool:
    if dtype.startswith("fp"):
        return abs(number) <= _MAX_FLOAT
    return number == int(number) and abs(number) <= _MAX_INT32


def _check_sampling(program: Program) -> None:
    limits = program.sampling
    for field in ("max_rows", "max_chosen", "max_pairs", "num_ties", "num_table_rows"):
        _least(getattr(limits, field), 1, f"program.sampling.{field}")
    sizes = limits.top_k
    if not sizes or sizes[0] < 1 or any(first >= second for first, second in pairwise(sizes)):
        raise ArtifactError(f"program.sampling.top_k: {list(sizes)} are not ascending counts; build again")
    for operation in operations_of(program).values():
        for name in operation.kernels:
            if name not in program.kernels:
                raise ArtifactError(f"program.kernels: there is no {name}; build again")
            kernel, where = program.kernels[name], f"program.kernels.{name}"
            _check_parameters(kernel, where, addresses_of(operation), NUMBERS)
            _equal(kernel.constants.get("VOCAB", program.vocab_size), program.vocab_size, f"{where}.constants.VOCAB")
            given = {*kernel.constants, *NUMBERS}
            for constant in PARTS.get(kernel.function, ("num_pairs", "BLOCK")) or ():
                if constant not in given or kernel.constants.get(constant, 1) < 1:
                    raise ArtifactError(f"{where}.constants.{constant}: must be at least 1; build again")
    ties = program.kernels[Sampling.FIND_TIES].constants.get("COUNT")
    _equal(ties, limits.num_ties, f"program.kernels.{Sampling.FIND_TIES}.constants.COUNT")
    for name, kernel in program.kernels.items():
        if kernel.function == "attention.copy_blocks":
            function = kernel.function
            _check_parameters(kernel, f"program.kernels.{name}", _HOST_ADDRESSES[function], _HOST_NUMBERS[function])


def _check_parameters(kernel: Kernel, where: str, addresses: Set[str], numbers: Set[str]) -> None:
    for name, dtype in kernel.parameters:
        if name not in addresses and name not in numbers:
            raise ArtifactError(f"{where}.parameters: no host has a {name!r}; build again")
        if dtype.startswith("*") != (name in addresses):
            raise ArtifactError(f"{where}.parameters: {name} cannot be {dtype!r}; build again")


def _check_type(dtype: str, where: str) -> None:
    if dtype not in ITEM_BYTES:
        raise ArtifactError(f"{where}.dtype: {dtype!r} is not one of {', '.join(ITEM_BYTES)}")


def _least(number: float, least: int, where: str) -> None:
    if number < least:
        raise ArtifactError(f"{where}: {number} is less than {least}; build again")


def _equal(found: object, wanted: object, where: str) -> None:
    if found != wanted:
        raise ArtifactError(f"{where}: {found}, where the program has {wanted}; build again")
