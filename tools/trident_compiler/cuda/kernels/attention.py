"""Paged attention over the packed tokens of a step.

Owns how a step's keys and values go to the blocks of the cache, and how its tokens attend to what lies there. The host
owns all decisions: a row of `items` says all that a program must know about its piece of work, so that none searches,
and a grid with more items than there is work serves every mixture of prompts and single tokens: an item of no tokens
ends at once.

The cache of a layer is `[blocks, KV_HEADS, BLOCK, DIM]` for keys and `[blocks, KV_HEADS, BLOCK, DIM_V]` for values. An
item is (begin of the sequence's table in `tables`, first token, number of tokens, position of the first token, first
key, end of keys, partial result or -1, 1 if it is the first piece of its tile). A merge is (first token, number of
tokens, first partial result, number of partial results). Sizes with _P are rounded up to powers of two.

The query heads of a head of keys and values are divided into PARTS, where a tile cannot hold them all: the second axis
of the grids of `attend` and `merge` is KV_HEADS * PARTS, the parts of one head next to each other.

Never reads a key or a value at or behind an item's `end`, so what nobody has written may hold anything there. All keys
from the first key to `end` must have been written and be finite: a mask hides some from a row by a weight of 0, and 0
times NaN is NaN.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
#: The largest score of a row that has seen no key: finite, so that its difference to itself is 0.
_NOTHING = tl.constexpr(-1.0e30)
#: The largest number of fp8 (e4m3), which has no infinity.
_MOST_FP8 = tl.constexpr(448.0)
#: Rows that a merge adds up at a time.
_MERGED_ROWS = tl.constexpr(16)


@triton.jit
def _quantized(number, factor):
    """Return what stands in the cache for a number: what is too large becomes the largest, and NaN stays NaN."""
    number = number.to(tl.float32) / factor
    return tl.clamp(number, -_MOST_FP8, _MOST_FP8, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def write_cache(
    keys,
    values,
    key_cache,
    value_cache,
    places,
    key_factor,
    value_factor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_V: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM_P: tl.constexpr,
    DIM_V_P: tl.constexpr,
    HEADS_P: tl.constexpr,
    QUANT: tl.constexpr,
):
    """Write a token's keys and values to its place in the cache, `block * BLOCK + offset`, or nowhere if that is < 0.

    One program is one token. With QUANT they are divided by the factors and rounded to the type of the cache, fp8.
    """
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token)
    if place >= 0:
        block = (place // BLOCK).to(tl.int64)
        offset = place % BLOCK
        head = tl.arange(0, HEADS_P)[:, None]

        dim = tl.arange(0, DIM_P)[None, :]
        inside = (head < KV_HEADS) & (dim < DIM)
        key = tl.load(keys + token * (KV_HEADS * DIM) + head * DIM + dim, mask=inside)
        if QUANT:
            key = _quantized(key, key_factor)
        target = (block * KV_HEADS + head) * (BLOCK * DIM) + offset * DIM + dim
        tl.store(key_cache + target, key.to(key_cache.dtype.element_ty), mask=inside)

        dim_v = tl.arange(0, DIM_V_P)[None, :]
        inside_v = (head < KV_HEADS) & (dim_v < DIM_V)
        value = tl.load(values + token * (KV_HEADS * DIM_V) + head * DIM_V + dim_v, mask=inside_v)
        if QUANT:
            value = _quantized(value, value_factor)
        target_v = (block * KV_HEADS + head) * (BLOCK * DIM_V) + offset * DIM_V + dim_v
        tl.store(value_cache + target_v, value.to(value_cache.dtype.element_ty), mask=inside_v)


@triton.jit
def _see_keys(
    query,
    acc,
    top,
    total,
    key_cache,
    value_cache,
    table,
    kv_head,
    start,
    end,
    row_position,
    slope,
    factor,
    softcap,
    window,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_V: tl.constexpr,
    DIM_P: tl.constexpr,
    DIM_V_P: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    QUANT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add KEYS keys from `start` on to the sums of a tile: `acc` and `total` are relative to `top`, a power of two.

    Without MASKED all rows see all of these keys. `factor` and `slope` contain what turns exponents into those of 2.
    """
    key_position = start + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM_P)
    dim_v = tl.arange(0, DIM_V_P)
    if MASKED:
        exists = key_position < end
        block = tl.load(table + key_position // BLOCK, mask=exists, other=0).to(tl.int64)
    else:
        block = tl.load(table + key_position // BLOCK).to(tl.int64)
    line = (block * KV_HEADS + kv_head) * BLOCK + key_position % BLOCK

    key_place = key_cache + line[:, None] * DIM + dim[None, :]
    if MASKED and DIM != DIM_P:
        key = tl.load(key_place, mask=exists[:, None] & (dim < DIM)[None, :], other=0.0)
    elif MASKED:
        key = tl.load(key_place, mask=exists[:, None], other=0.0)
    elif DIM != DIM_P:
        key = tl.load(key_place, mask=(dim < DIM)[None, :], other=0.0)
    else:
        key = tl.load(key_place)
    if QUANT:
        key = key.to(query.dtype)
    score = tl.dot(query, tl.trans(key), input_precision="tf32x3")
    if CAP:
        # A tanh of exponentials, as the interpreter has no other.
        score = softcap * (1.0 - 2.0 / (tl.exp2(score * factor) + 1.0))
    else:
        score = score * factor
    if ALIBI:
        score += slope[:, None] * (key_position[None, :] - row_position[:, None]).to(tl.float32)
    if MASKED:
        seen = exists[None, :] & (key_position[None, :] <= row_position[:, None])
        if WINDOW:
            seen = seen & (key_position[None, :] > row_position[:, None] - window)
        score = tl.where(seen, score, float("-inf"))

    new_top = tl.maximum(top, tl.max(score, 1))
    weight = tl.exp2(score - new_top[:, None])
    keep = tl.exp2(top - new_top)
    total = total * keep + tl.sum(weight, 1)
    acc = acc * keep[:, None]

    value_place = value_cache + line[:, None] * DIM_V + dim_v[None, :]
    if MASKED and DIM_V != DIM_V_P:
        value = tl.load(value_place, mask=exists[:, None] & (dim_v < DIM_V)[None, :], other=0.0)
    elif MASKED:
        value = tl.load(value_place, mask=exists[:, None], other=0.0)
    elif DIM_V != DIM_V_P:
        value = tl.load(value_place, mask=(dim_v < DIM_V)[None, :], other=0.0)
    else:
        value = tl.load(value_place)
    if QUANT:
        value = value.to(query.dtype)
    acc = tl.dot(weight.to(query.dtype), value, acc, input_precision="tf32x3")
    return acc, new_top, total


@triton.jit
def attend(
    out,
    partial_out,
    partial_stats,
    queries,
    key_cache,
    value_cache,
    tables,
    items,
    sinks,
    slopes,
    scale,
    softcap,
    window,
    key_factor,
    value_factor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_V: tl.constexpr,
    DIM_P: tl.constexpr,
    DIM_V_P: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    ALIBI: tl.constexpr,
    QUANT: tl.constexpr,
):
    """Let the tokens of an item attend to its keys: at most ROWS // (GROUP // PARTS) tokens of one sequence.

    One program is an item and a part of the GROUP query heads of a head of keys and values; a row of its tile is a
    token and one of these. Writes the result to `out`, or where the item is a piece of a tile, sums to `partial_out`
    `[partials, KV_HEADS * PARTS, ROWS, DIM_V]` and their scales to `partial_stats` `[partials, KV_HEADS * PARTS, ROWS,
    2]`: the largest score, as a power of two, and the total of the weights relative to it. With QUANT what is in the
    cache is multiplied by the factors.
    """
    item = items + tl.program_id(0) * 8
    part = tl.program_id(1)
    kv_head = part // PARTS
    SHARE: tl.constexpr = GROUP // PARTS
    count = tl.load(item + 2)
    if count > 0:
        table = tables + tl.load(item + 0)
        token = tl.load(item + 1)
        position = tl.load(item + 3)
        begin = tl.load(item + 4)
        end = tl.load(item + 5)
        partial = tl.load(item + 6)
        is_first = tl.load(item + 7)

        row = tl.arange(0, ROWS)
        dim = tl.arange(0, DIM_P)
        row_token = row // SHARE
        row_head = part * SHARE + row % SHARE
        row_ok = row_token < count
        row_position = position + row_token
        row_place = (token + row_token).to(tl.int64) * (KV_HEADS * GROUP) + row_head
        query_ok = row_ok[:, None] & (dim < DIM)[None, :]
        query = tl.load(queries + row_place[:, None] * DIM + dim[None, :], mask=query_ok, other=0.0)

        factor = scale
        if QUANT:
            factor = factor * key_factor
        if CAP:
            factor = factor * (2.0 * _LOG2E) / softcap
            softcap = softcap * _LOG2E
        else:
            factor = factor * _LOG2E
        if ALIBI:
            slope = tl.load(slopes + row_head, mask=row_ok, other=0.0) * _LOG2E
        else:
            slope = tl.zeros([ROWS], tl.float32)

        top = tl.full([ROWS], _NOTHING, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        if SINKS:
            sink = tl.load(sinks + row_head, mask=row_ok, other=0.0) * _LOG2E
            top = tl.where(is_first != 0, tl.maximum(sink, _NOTHING), top)
            total = tl.where(is_first != 0, tl.exp2(sink - top), total)
        acc = tl.zeros([ROWS, DIM_V_P], tl.float32)

        # All rows see all keys of the tiles from `whole_begin` to `whole_end`. What a window hides from some rows lies
        # before these, what comes after a row lies behind them.
        whole_begin = begin
        if WINDOW:
            hidden = tl.maximum(position + count - window - begin, 0)
            whole_begin = begin + (hidden + KEYS - 1) // KEYS * KEYS
        whole_end = whole_begin + tl.maximum(tl.minimum(position + 1, end) - whole_begin, 0) // KEYS * KEYS
        for start in range(whole_begin, whole_end, KEYS):
            acc, top, total = _see_keys(
                query,
                acc,
                top,
                total,
                key_cache,
                value_cache,
                table,
                kv_head,
                start,
                end,
                row_position,
                slope,
                factor,
                softcap,
                window,
                KV_HEADS,
                DIM,
                DIM_V,
                DIM_P,
                DIM_V_P,
                BLOCK,
                KEYS,
                WINDOW,
                CAP,
                ALIBI,
                QUANT,
                False,
            )
        num_before = (whole_begin - begin) // KEYS
        num_masked = num_before + (tl.maximum(end - whole_end, 0) + KEYS - 1) // KEYS
        for index in tl.range(0, num_masked, num_stages=1):
            start = begin + index * KEYS
            if WINDOW:
                start = tl.where(index < num_before, start, start - whole_begin + whole_end)
            else:
                start = start - whole_begin + whole_end
            acc, top, total = _see_keys(
                query,
                acc,
                top,
                total,
                key_cache,
                value_cache,
                table,
                kv_head,
                start,
                end,
                row_position,
                slope,
                factor,
                softcap,
                window,
                KV_HEADS,
                DIM,
                DIM_V,
                DIM_P,
                DIM_V_P,
                BLOCK,
                KEYS,
                WINDOW,
                CAP,
                ALIBI,
                QUANT,
                True,
            )

        if QUANT:
            acc = acc * value_factor
        dim_v = tl.arange(0, DIM_V_P)
        out_ok = row_ok[:, None] & (dim_v < DIM_V)[None, :]
        if partial < 0:
            result = (acc / total[:, None]).to(out.dtype.element_ty)
            tl.store(out + row_place[:, None] * DIM_V + dim_v[None, :], result, mask=out_ok)
        else:
            line = (partial.to(tl.int64) * (KV_HEADS * PARTS) + part) * ROWS + row
            tl.store(partial_out + line[:, None] * DIM_V + dim_v[None, :], acc, mask=out_ok)
            tl.store(partial_stats + line * 2, top, mask=row_ok)
            tl.store(partial_stats + line * 2 + 1, total, mask=row_ok)


@triton.jit
def merge(
    out,
    partial_out,
    partial_stats,
    merges,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    DIM_V: tl.constexpr,
    DIM_V_P: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add up the pieces of a tile and write its result; one program is a tile and a part of a group of heads."""
    item = merges + tl.program_id(0) * 4
    part = tl.program_id(1)
    SHARE: tl.constexpr = GROUP // PARTS
    count = tl.load(item + 1)
    token = tl.load(item)
    first = tl.load(item + 2)
    number = tl.load(item + 3)
    dim = tl.arange(0, DIM_V_P)
    for first_row in range(0, count * SHARE, _MERGED_ROWS):
        row = first_row + tl.arange(0, _MERGED_ROWS)
        row_ok = row < count * SHARE
        out_ok = row_ok[:, None] & (dim < DIM_V)[None, :]
        top = tl.full([_MERGED_ROWS], _NOTHING, tl.float32)
        total = tl.zeros([_MERGED_ROWS], tl.float32)
        acc = tl.zeros([_MERGED_ROWS, DIM_V_P], tl.float32)
        for index in tl.range(0, number, loop_unroll_factor=4):
            line = ((first + index).to(tl.int64) * (KV_HEADS * PARTS) + part) * ROWS + row
            its_top = tl.load(partial_stats + line * 2, mask=row_ok, other=_NOTHING)
            its_total = tl.load(partial_stats + line * 2 + 1, mask=row_ok, other=0.0)
            its_acc = tl.load(partial_out + line[:, None] * DIM_V + dim[None, :], mask=out_ok, other=0.0)
            new_top = tl.maximum(top, its_top)
            keep = tl.exp2(top - new_top)
            its_keep = tl.exp2(its_top - new_top)
            total = total * keep + its_total * its_keep
            acc = acc * keep[:, None] + its_acc * its_keep[:, None]
            top = new_top
        place = (token + row // SHARE).to(tl.int64) * (KV_HEADS * GROUP) + part * SHARE + row % SHARE
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + place[:, None] * DIM_V + dim[None, :], result, mask=out_ok)


@triton.jit
def copy_blocks(pool, geometry, copies, num_copies, CHUNK: tl.constexpr):
    """Copy blocks of the cache one after another; one program is the keys or the values of a layer.

    `geometry` `[2 * layers, 2]` is where they begin and how large a block is, in words of 32 bits, multiples of 4.
    """
    cache = tl.program_id(0)
    begin = tl.multiple_of(tl.load(geometry + cache * 2), 4)
    size = tl.multiple_of(tl.load(geometry + cache * 2 + 1), 4)
    for index in range(num_copies):
        source = pool + begin + tl.load(copies + index * 2) * size
        target = pool + begin + tl.load(copies + index * 2 + 1) * size
        for start in range(0, size.to(tl.int32), CHUNK):
            at = start + tl.arange(0, CHUNK)
            inside = at < size
            tl.store(target + at, tl.load(source + at, mask=inside), mask=inside)
        tl.debug_barrier()
