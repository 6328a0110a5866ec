"""Mixtures of experts, in the Triton language: the choice, the products with chosen experts alone, and their sum.

Owns the order of pairs: pair `token * CHOSEN + place` is the expert that a token has at that place, and the values of
pairs lie in that order; products take pairs expert by expert, and write where the pair is. Never adds anything up in an
order that depends on other programs, so that a token gets the same whoever else is in a step of the same size.
"""

import triton
import triton.language as tl

from trident_compiler.cuda.kernels.linear import eight


@triton.jit
def route(
    chosen,
    shares,
    logits,
    bias,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    CHOSEN: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
    GROUP_TOP: tl.constexpr,
    SCORING: tl.constexpr,
    BIAS: tl.constexpr,
    NORMALISED: tl.constexpr,
    EPSILON: tl.constexpr,
    FACTOR: tl.constexpr,
    GROUPS_P: tl.constexpr,
    SIZE_P: tl.constexpr,
    CHOSEN_P: tl.constexpr,
):
    """Choose the experts of a token, the best first and of equals the first: `chosen` int32 and `shares` float32
    `[T, CHOSEN]`, by `logits [T, GROUPS * SIZE]` and `bias` float32 `[GROUPS * SIZE]`.

    SCORING: 0 is the softmax over all, 1 that over the chosen, 2 the sigmoid. One program a token.
    """
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_P)
    member = tl.arange(0, SIZE_P)
    expert = group[:, None] * SIZE + member[None, :]
    is_one = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    x = tl.load(logits + token * (GROUPS * SIZE) + expert, mask=is_one, other=float("-inf")).to(tl.float32)
    if SCORING == 0:
        weight = tl.exp(x - tl.max(tl.max(x, 1), 0))
        scores = weight / tl.sum(tl.sum(weight, 1), 0)
    elif SCORING == 2:
        scores = 1 / (1 + tl.exp(-x))
    else:
        scores = x
    choice = scores
    if BIAS:
        choice += tl.load(bias + expert, mask=is_one, other=0.0)
    # Whatever the logits are, what is chosen are experts, each once.
    choice = tl.where(is_one & (choice == choice), choice, float("-inf"))  # noqa: PLR0124 (NaN)
    is_left = is_one
    if CHOSEN_GROUPS < GROUPS:
        score = tl.zeros([GROUPS_P], tl.float32)
        left = choice
        for _ in tl.static_range(GROUP_TOP):
            best = tl.max(left, 1)
            first = tl.min(tl.where(left == best[:, None], member[None, :], SIZE_P), 1)
            score += best
            left = tl.where(member[None, :] == first[:, None], float("-inf"), left)
        is_open = group < GROUPS
        for _ in tl.static_range(CHOSEN_GROUPS):
            best = tl.max(tl.where(is_open, score, float("-inf")), 0)
            first = tl.min(tl.where(is_open & (score == best), group, GROUPS_P), 0)
            is_open = is_open & (group != first)
        is_left = is_one & (is_open == 0)[:, None]
    place = tl.arange(0, CHOSEN_P)
    found = tl.zeros([CHOSEN_P], tl.int32)
    values = tl.full([CHOSEN_P], float("-inf"), tl.float32)
    for each in tl.static_range(CHOSEN):
        best = tl.max(tl.max(tl.where(is_left, choice, float("-inf")), 1), 0)
        ids = tl.where(is_left & (choice == best), expert, GROUPS * SIZE)
        first = tl.min(tl.min(ids, 1), 0)
        is_it = is_left & (expert == first)
        value = tl.sum(tl.sum(tl.where(is_it, scores, 0.0), 1), 0)
        found = tl.where(place == each, first, found)
        values = tl.where(place == each, value, values)
        is_left = is_left & (expert != first)
    if SCORING == 1:
        values = tl.exp(values - tl.max(values, 0))
        values = values / tl.sum(values, 0)
    if NORMALISED:
        values = values / (tl.sum(tl.where(place < CHOSEN, values, 0.0), 0) + EPSILON)
    tl.store(chosen + token * CHOSEN + place, found, mask=place < CHOSEN)
    tl.store(shares + token * CHOSEN + place, values * FACTOR, mask=place < CHOSEN)


@triton.jit
def group(order, counts, chosen, num_rows, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    """Order pairs by their expert, those of one as they come: `order` int32 `[T * CHOSEN]`, and how many each expert
    has, `counts` int32 `[experts]`. One program an expert, which looks at all pairs.
    """
    expert = tl.program_id(0)
    total = num_rows * CHOSEN
    lane = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, total, BLOCK):
        pair = begin + lane
        each = tl.load(chosen + pair, mask=pair < total, other=expert)
        before += (each < expert).to(tl.int32)
    place = tl.sum(before, 0)
    count = tl.full([], 0, tl.int32)
    for begin in range(0, total, BLOCK):
        pair = begin + lane
        is_mine = (tl.load(chosen + pair, mask=pair < total, other=0) == expert) & (pair < total)
        mine = is_mine.to(tl.int32)
        tl.store(order + place + count + tl.cumsum(mine, 0) - 1, pair, mask=is_mine)
        count += tl.sum(mine, 0)
    tl.store(counts + expert, count)


@triton.jit
def linear(
    out,
    x,
    weight,
    scales,
    bias,
    order,
    counts,
    K: tl.constexpr,
    N: tl.constexpr,
    EXPERTS: tl.constexpr,
    DIVISOR: tl.constexpr,
    GROUP: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    EXPERTS_P: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """Multiply each pair's row by its expert's matrix: `out [pairs, N]`, of `x [pairs / DIVISOR, K]` and `weight
    [EXPERTS, N, K]`, whose formats are those of `linear.linear`, with `scales` and `bias` float32 `[EXPERTS, N]`.

    Grid: (tiles of pairs, tiles of outputs, 1). A tile's pairs have one expert; of tiles that are too many nothing is
    computed.
    """
    tile = tl.program_id(0)
    each = tl.arange(0, EXPERTS_P)
    count = tl.load(counts + each, mask=each < EXPERTS, other=0)
    tiles = (count + TILE_T - 1) // TILE_T
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if expert < EXPERTS:
        is_before = each < expert
        first = (tile - tl.sum(tl.where(is_before, tiles, 0), 0)) * TILE_T
        begin = tl.sum(tl.where(is_before, count, 0), 0)
        place = first + tl.arange(0, TILE_T)
        row_ok = place < tl.sum(tl.where(each == expert, count, 0), 0)
        pair = tl.load(order + begin + place, mask=row_ok, other=0).to(tl.int64)
        column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
        column_ok = column < N
        matrix_row = expert.to(tl.int64) * N + column
        depth = tl.arange(0, TILE_K)
        x_line = x + (pair // DIVISOR * K)[:, None]
        total = tl.zeros([TILE_T, TILE_N], tl.float32)
        for k in range(0, K, TILE_K):
            inside = (k + depth < K)[None, :]
            rows = tl.load(x_line + (k + depth)[None, :], mask=row_ok[:, None] & inside, other=0.0)
            if GROUP:
                places = (matrix_row * (K // 8))[:, None] + (k // 8 + tl.arange(0, TILE_K // 8))[None, :]
                words = weight.to(tl.pointer_type(tl.int32)) + places
                packed = tl.load(words, mask=column_ok[:, None], other=0)
                numbers = eight(packed, rows.dtype).reshape(TILE_N, TILE_K)
                scale = tl.load(scales + matrix_row * (K // GROUP) + k // GROUP, mask=column_ok, other=0.0)
                total += tl.dot(rows, tl.trans(numbers), input_precision="ieee") * scale[None, :]
            else:
                places = (matrix_row * K)[:, None] + (k + depth)[None, :]
                numbers = tl.load(weight + places, mask=column_ok[:, None] & inside, other=0.0)
                total = tl.dot(rows, tl.trans(numbers.to(rows.dtype)), total, input_precision="ieee")
        if SCALED:
            total *= tl.load(scales + matrix_row, mask=column_ok, other=0.0)[None, :]
        if BIAS:
            total += tl.load(bias + matrix_row, mask=column_ok, other=0.0)[None, :]
        target = out + (pair * N)[:, None] + column[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])


@triton.jit
def combine(out, outputs, shares, CHOSEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Add up a token's outputs `[T, CHOSEN, WIDTH]` by their shares float32 `[T, CHOSEN]`, in the order of the choice.

    Grid: (T, chunks of WIDTH, 1).
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros([CHUNK], tl.float32)
    for place in tl.static_range(CHOSEN):
        share = tl.load(shares + token * CHOSEN + place)
        each = outputs + (token * CHOSEN + place) * WIDTH + column
        total += share * tl.load(each, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=column < WIDTH)
