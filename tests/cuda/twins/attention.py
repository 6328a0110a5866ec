"""Twins of the kernels of attention: an item at a time, all its heads at once.

Owns the arithmetic in float32. Where a kernel rounds weights to the type it multiplies in, twins do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cuda.calls import Call

Array = npt.NDArray[Any]
_LOG2E = np.float32(1.4426950408889634)
_NOTHING = np.float32(-1.0e30)
_MOST_FP8 = np.float32(448)


def write_cache(call: Call) -> None:
    """Write keys and values to their places."""
    heads, block = _sizes(call, "KV_HEADS", "BLOCK")
    tokens = call.grid[0]
    places = call.read("places", (tokens,)).astype(np.int64)
    kept = np.flatnonzero(places >= 0)
    lines = _lines(places[kept] // block, places[kept] % block, np.arange(heads)[None, :], heads, block)
    for name, cache, factor, size in (
        ("keys", "key_cache", "key_factor", "DIM"),
        ("values", "value_cache", "value_factor", "DIM_V"),
    ):
        (dim,) = _sizes(call, size)
        numbers = call.read(name, (tokens, heads, dim))[kept]
        if call.constants["QUANT"]:
            numbers = np.clip(numbers / np.float32(call.number(factor)), -_MOST_FP8, _MOST_FP8)
        call.scatter(cache, lines * dim, numbers)


def attend(call: Call) -> None:
    """Attend, for every item that has tokens."""
    items = call.read("items", (call.grid[0], 8))
    for item in items[items[:, 2] > 0].tolist():
        _attend_item(call, item)


def _attend_item(call: Call, item: list[int]) -> None:
    table, token, count, position, begin, end, partial, is_first = item
    constants = call.constants
    kv_heads, group, block, tile = _sizes(call, "KV_HEADS", "GROUP", "BLOCK", "ROWS")
    parts, dim, dim_v = _sizes(call, "PARTS", "DIM", "DIM_V")
    heads, rows = kv_heads * group, count * group
    assert call.grid[1] == kv_heads * parts, f"{call.grid[1]} programs for {kv_heads} heads in {parts} parts"
    assert group % parts == 0, f"{group} heads in {parts} parts"
    assert rows <= tile * parts, f"{count} tokens in a tile of {tile} rows"
    # Rows of a head of keys are its tokens, and of each the heads of the group.
    query = call.read("queries", (count, heads, dim), token * heads * dim).reshape(count, kv_heads, group, dim)
    query = query.transpose(1, 0, 2, 3).reshape(kv_heads, rows, dim)
    at = np.repeat(position + np.arange(count), group)[:, None]
    head = np.arange(kv_heads)[:, None] * group + np.tile(np.arange(group), count)

    seen_at = np.arange(begin, end)
    first_block = begin // block
    blocks = call.read("tables", (-(-end // block) - first_block,), table + first_block) if end > begin else seen_at
    lines = _lines(
        blocks[seen_at // block - first_block],
        seen_at % block,
        np.arange(kv_heads)[:, None],
        kv_heads,
        block,
        last=True,
    )
    key = call.gather("key_cache", lines * dim, dim)
    value = call.gather("value_cache", lines * dim_v, dim_v)

    factor = np.float32(call.number("scale"))
    if constants["QUANT"]:
        factor *= np.float32(call.number("key_factor"))
    score = (query @ key.transpose(0, 2, 1)) * factor
    if constants["CAP"]:
        cap = np.float32(call.number("softcap"))
        score = cap * np.tanh(score / cap)
    if constants["ALIBI"]:
        slopes = call.read("slopes", (heads,))[head]
        score += slopes[:, :, None] * (seen_at - at).astype(np.float32)
    is_seen = seen_at <= at
    if constants["WINDOW"]:
        is_seen &= seen_at > at - call.number("window")
    score = np.where(is_seen, score * _LOG2E, np.float32(-np.inf))

    top = score.max(axis=-1, initial=_NOTHING)
    sink = np.full_like(top, -np.inf)
    if constants["SINKS"] and is_first:
        sink = call.read("sinks", (heads,))[head] * _LOG2E
        top = np.maximum(top, sink)
    weight = np.exp2(score - top[..., None])
    total = weight.sum(axis=-1) + np.exp2(sink - top)
    acc = weight @ value
    if constants["QUANT"]:
        acc *= np.float32(call.number("value_factor"))
    if partial < 0:
        result = (acc / total[..., None]).reshape(kv_heads, count, group, dim_v).transpose(1, 0, 2, 3)
        call.store("out", result.reshape(count, heads, dim_v), token * heads * dim_v)
        return
    sums, stats = (_in_parts(each, count, parts) for each in (acc, np.stack([top, total], axis=-1)))
    for part in range(kv_heads * parts):
        line = (partial * kv_heads * parts + part) * tile
        call.store("partial_out", sums[part], line * dim_v)
        call.store("partial_stats", stats[part], line * 2)


def merge(call: Call) -> None:
    """Add up the pieces of every divided tile."""
    kv_heads, group, parts, dim_v, tile = _sizes(call, "KV_HEADS", "GROUP", "PARTS", "DIM_V", "ROWS")
    assert call.grid[1] == kv_heads * parts, f"{call.grid[1]} programs for {kv_heads} heads in {parts} parts"
    heads, num_parts, share = kv_heads * group, kv_heads * parts, group // parts
    merges = call.read("merges", (call.grid[0], 4))
    for token, count, first, number in merges[merges[:, 1] > 0].tolist():
        rows = count * share
        assert rows <= tile, f"{count} tokens in a tile of {tile} rows"
        lines = (first + np.arange(number))[:, None, None] * num_parts + np.arange(num_parts)[:, None]
        lines = lines * tile + np.arange(rows)
        stats = call.gather("partial_stats", lines * 2, 2)
        sums = call.gather("partial_out", lines * dim_v, dim_v)
        scale = np.exp2(stats[..., 0] - stats[..., 0].max(axis=0))
        result = (sums * scale[..., None]).sum(axis=0) / (stats[..., 1] * scale).sum(axis=0)[..., None]
        result = result.reshape(num_parts, count, share, dim_v).transpose(1, 0, 2, 3)
        call.store("out", result.reshape(count, heads, dim_v), token * heads * dim_v)


def copy_blocks(call: Call) -> None:
    """Copy blocks, one after another."""
    number = call.number("num_copies")
    copies = call.read("copies", (number, 2)).tolist()
    for begin, size in call.read("geometry", (call.grid[0], 2)).tolist():
        assert begin % 4 == 0, f"{begin} words is no multiple of 4"
        assert size % 4 == 0, f"{size} words is no multiple of 4"
        for source, target in copies:
            block = call.raw("pool", (size,), begin + source * size).copy()
            call.raw("pool", (size,), begin + target * size)[:] = block


def _in_parts(rows: Array, count: int, parts: int) -> Array:
    """Return what heads of keys have for rows of tokens and heads, `[heads, rows, n]`, as parts of groups have it."""
    heads, num_rows, last = rows.shape
    share = num_rows // count // parts
    divided = rows.reshape(heads, count, parts, share, last).transpose(0, 2, 1, 3, 4)
    return divided.reshape(heads * parts, count * share, last)


def _sizes(call: Call, *names: str) -> list[int]:
    return [int(call.constants[name]) for name in names]


def _lines(blocks: Array, offsets: Array, heads: Array, kv_heads: int, block: int, *, last: bool = False) -> Array:
    """Return lines of the cache `[blocks, heads]`, or `[heads, blocks]` where the blocks are `last`."""
    places = blocks.astype(np.int64) * (kv_heads * block) + offsets
    return (places[None, :] if last else places[:, None]) + heads * block
