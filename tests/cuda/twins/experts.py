"""The kernels of `kernels/experts.py` in numpy."""

from __future__ import annotations

import numpy as np

from tests.cuda.calls import Array, Call


def route(call: Call) -> None:
    num_rows, groups, size = call.grid[0], *(int(call.constants[name]) for name in ("GROUPS", "SIZE"))
    chosen, best_groups, top = (int(call.constants[name]) for name in ("CHOSEN", "CHOSEN_GROUPS", "GROUP_TOP"))
    with np.errstate(all="ignore"):
        logits = call.read("logits", (num_rows, groups * size))
        scores = _scores(logits, int(call.constants["SCORING"]))
        choice = scores + call.read("bias", (groups * size,)) if call.constants["BIAS"] else scores
        choice = np.where(np.isnan(choice), -np.inf, choice)
        # What is out of the question comes after all else, whatever that is.
        is_out = np.zeros(choice.shape, np.bool_)
        if best_groups < groups:
            grouped = choice.reshape(num_rows, groups, size)
            totals = -np.sort(-grouped, axis=2)[:, :, :top].sum(axis=2)
            order = np.argsort(-totals, axis=1, kind="stable")
            np.put_along_axis(is_out.reshape(grouped.shape), order[:, best_groups:, None], values=True, axis=1)
        ids = np.lexsort((np.broadcast_to(np.arange(groups * size), choice.shape), -choice, is_out), axis=1)[:, :chosen]
        shares = np.take_along_axis(scores, ids, axis=1)
        if call.constants["SCORING"] == 1:
            shares = _softmax(shares)
        if call.constants["NORMALISED"]:
            shares = shares / (shares.sum(axis=1, keepdims=True) + np.float32(call.constants["EPSILON"]))
        call.store("chosen", ids)
        call.store("shares", shares * np.float32(call.constants["FACTOR"]))


def group(call: Call) -> None:
    num_experts = call.grid[0]
    chosen = call.read("chosen", (call.number("num_rows") * int(call.constants["CHOSEN"]),))
    call.store("order", np.argsort(chosen, kind="stable"))
    call.store("counts", np.bincount(chosen, minlength=num_experts))


def linear(call: Call) -> None:
    names = ("K", "N", "EXPERTS", "DIVISOR", "GROUP", "TILE_T", "TILE_N")
    depth, columns, num_experts, divisor, group_size, tile_t, tile_n = (int(call.constants[name]) for name in names)
    counts = call.read("counts", (num_experts,)).astype(np.int64)
    order = call.read("order", (int(counts.sum()),)).astype(np.int64)
    assert call.grid[0] >= (-(-counts // tile_t)).sum(), f"{call.grid[0]} tiles are too few"
    assert call.grid[1] == -(-columns // tile_n), call.grid
    ends = np.cumsum(counts)
    for expert in np.flatnonzero(counts):
        pairs = order[ends[expert] - counts[expert] : ends[expert]]
        x = call.gather("x", pairs // divisor * depth, depth)
        with np.errstate(all="ignore"):
            total = x @ _matrix(call, int(expert)).T if not group_size else _in_groups(call, int(expert), x)
            if call.constants["SCALED"]:
                total = total * call.read("scales", (columns,), int(expert) * columns)
            if call.constants["BIAS"]:
                total = total + call.read("bias", (columns,), int(expert) * columns)
        call.scatter("out", pairs * columns, total)


def combine(call: Call) -> None:
    num_rows, chosen, width = call.grid[0], *(int(call.constants[name]) for name in ("CHOSEN", "WIDTH"))
    assert call.grid[1] == -(-width // int(call.constants["CHUNK"])), call.grid
    outputs, shares = call.read("outputs", (num_rows, chosen, width)), call.read("shares", (num_rows, chosen))
    total = np.zeros((num_rows, width), np.float32)
    with np.errstate(all="ignore"):
        for place in range(chosen):
            total += shares[:, place, None] * outputs[:, place]
    call.store("out", total)


def _matrix(call: Call, expert: int) -> Array:
    """An expert's weights without scales, float32 `[outputs, inputs]`."""
    depth, columns = (int(call.constants[name]) for name in ("K", "N"))
    if not call.constants["GROUP"]:
        return np.asarray(call.read("weight", (columns, depth), expert * columns * depth), np.float32)
    pairs = call.raw("weight", (columns, depth // 2), expert * columns * (depth // 2))
    halves = np.stack([(pairs << 4) >> 4, pairs >> 4], axis=-1)
    return np.asarray(halves.reshape(columns, depth), np.float32)


def _in_groups(call: Call, expert: int, x: Array) -> Array:
    """The product with weights that share scales along a row."""
    depth, columns, size = (int(call.constants[name]) for name in ("K", "N", "GROUP"))
    scales = call.read("scales", (columns, depth // size), expert * columns * (depth // size))
    weight = _matrix(call, expert)
    total = np.zeros((len(x), columns), np.float32)
    for number in range(depth // size):
        part = slice(number * size, (number + 1) * size)
        total += x[:, part] @ weight[:, part].T * scales[:, number]
    return total


def _scores(logits: Array, scoring: int) -> Array:
    if scoring == 0:
        return _softmax(logits)
    return 1 / (1 + np.exp(-logits)) if scoring == 2 else logits


def _softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Array = weights / weights.sum(axis=1, keepdims=True)
    return found
