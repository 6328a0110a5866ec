"""The operations on logits that sampling is made of, in the Triton language.

Owns how rows are searched and changed, and what becomes of numbers that are none. Never lets one row touch another.

All read `logits` float32 `[buffer rows, VOCAB]`, of which `rows` int32 `[N]` names those that are asked for. Kernels
that change rows write them to `changed` float32 `[N, VOCAB]`; pairs int32 `[P, 2]` are rows and token ids.
"""

import triton
import triton.language as tl


@triton.jit
def argmax(ids, values, logits, rows, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Find the largest logit of a row, and of equals the lowest id; NaN counts as +inf. One program a row."""
    line = tl.program_id(0)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = lane
    for begin in range(0, VOCAB, BLOCK):
        token = begin + lane
        x = tl.load(row + token, mask=token < VOCAB, other=float("-inf"))
        x = tl.where(x == x, x, float("inf"))  # noqa: PLR0124 (NaN)
        is_better = x > best
        best = tl.where(is_better, x, best)
        best_id = tl.where(is_better, token, best_id)
    top = tl.max(best, 0)
    tl.store(ids + line, tl.min(tl.where(best == top, best_id, VOCAB), 0))
    tl.store(values + line, top)


@triton.jit
def chunk_exp_sums(
    sums,
    logits,
    rows,
    maxima,
    inverses,
    floors,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Sum the weights of CHUNKS chunks of a row: `sums` `[N, NUM_CHUNKS]`. Grid: (rows, tiles of chunks)."""
    line = tl.program_id(0)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    token = chunk[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = tl.load(row + token, mask=token < VOCAB, other=float("-inf"))
    weight = tl.exp((x - tl.load(maxima + line)) * tl.load(inverses + line))
    weight = tl.where((x < tl.load(floors + line)) | (token >= VOCAB), 0.0, weight)
    tl.store(sums + line * NUM_CHUNKS + chunk, tl.sum(weight, 1), mask=chunk < NUM_CHUNKS)


@triton.jit
def select(keys, key_ids, logits, rows, count, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Collect the `count` largest logits of a row, in no order: `keys` and `key_ids`, int32 `[N, count]`.

    A key is a whole number that is ordered as the logits are, NaN at both ends. The smallest that is collected is found
    four bits at a time, from the highest on: each pass counts the keys that agree with it so far by their next four
    bits. A lane counts in bytes, eight of them in one number, which hold as many blocks as 255. Of keys that equal the
    smallest, those with the lowest ids are taken. One program a row.
    """
    line = tl.program_id(0)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    lane = tl.arange(0, BLOCK)
    # What is known of the smallest key, which of its bits that is, and how many keys are above all that agree with it.
    known = tl.full([], 0, tl.uint32)
    mask = tl.full([], 0, tl.uint32)
    above = tl.full([], 0, tl.int32)
    for turn in range(8):
        shift = 28 - 4 * turn
        lower = tl.zeros([BLOCK], tl.int64)
        upper = tl.zeros([BLOCK], tl.int64)
        for begin in range(0, VOCAB, BLOCK):
            token = begin + lane
            bits = tl.load(row + token, mask=token < VOCAB, other=0.0).to(tl.int32, bitcast=True)
            key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
            agrees = (((key ^ known) & mask) == 0) & (token < VOCAB)
            digit = ((key >> shift) & 15).to(tl.int32)
            one = agrees.to(tl.int64) << ((digit & 7) * 8).to(tl.int64)
            lower += tl.where(digit < 8, one, 0)
            upper += tl.where(digit < 8, 0, one)
        chosen = tl.full([], 0, tl.int32)
        is_found = tl.full([], 0, tl.int32)
        # Three bytes at a time are added up over the lanes, in 21 bits each: those of digits 15, 14, 13, and so on.
        for triple in tl.static_range(6):
            counts = upper if triple < 3 else lower
            counts = counts << 8 if triple % 3 == 2 else counts >> (40 - 24 * (triple % 3))
            spread = (counts & 0xFF) | ((counts & 0xFF00) << 13) | ((counts & 0xFF0000) << 26)
            totals = tl.sum(spread, 0)
            for member in tl.static_range(2 if triple % 3 == 2 else 3):
                digit = 15 - 8 * (triple // 3) - 3 * (triple % 3) - member
                inside = ((totals >> (42 - 21 * member)) & 0x1FFFFF).to(tl.int32)
                is_here = (is_found == 0) & (above + inside >= count)
                chosen = tl.where(is_here, digit, chosen)
                is_found = tl.where(is_here, 1, is_found)
                above = tl.where(is_found == 1, above, above + inside)
        known = known | (chosen.to(tl.uint32) << shift)
        mask = (mask >> 4) | 0xF0000000
    smallest = (known ^ 0x80000000).to(tl.int32, bitcast=True)
    num_above = tl.full([], 0, tl.int32)
    num_equal = above
    for begin in range(0, VOCAB, BLOCK):
        token = begin + lane
        bits = tl.load(row + token, mask=token < VOCAB, other=0.0).to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        is_above = (key > smallest) & (token < VOCAB)
        is_equal = (key == smallest) & (token < VOCAB)
        # Both are counted in one number: a block has less than 2^15 tokens.
        before = tl.cumsum(is_above.to(tl.int32) | (is_equal.to(tl.int32) << 16), 0)
        place = tl.where(is_above, num_above + (before & 0xFFFF), num_equal + (before >> 16)) - 1
        is_taken = is_above | (is_equal & (place < count))
        tl.store(keys + line * count + place, key, mask=is_taken)
        tl.store(key_ids + line * count + place, token, mask=is_taken)
        total = tl.max(before, 0)
        num_above += total & 0xFFFF
        num_equal += total >> 16


@triton.jit
def rank(values, ids, keys, key_ids, count, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Put what `select` has collected in order, the largest first: each goes where as many are before it.

    Grid: (rows, blocks of keys).
    """
    line = tl.program_id(0)
    mine = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + line * count + mine, mask=mine < count, other=0)
    place = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, count, STEP):
        other = begin + tl.arange(0, STEP)
        others = tl.load(keys + line * count + other, mask=other < count, other=0)[None, :]
        is_before = (others > key[:, None]) | ((others == key[:, None]) & (other[None, :] < mine[:, None]))
        place += tl.sum((is_before & (other < count)[None, :]).to(tl.int32), 1)
    value = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tl.store(values + line * count + place, value, mask=mine < count)
    token = tl.load(key_ids + line * count + mine, mask=mine < count, other=0)
    tl.store(ids + line * count + place, token, mask=mine < count)


@triton.jit
def find_ties(
    ids,
    logits,
    rows,
    values,
    VOCAB: tl.constexpr,
    COUNT: tl.constexpr,
    COUNT_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the COUNT lowest ids of a row whose logit is its value, and VOCAB for what is missing. One program a row."""
    line = tl.program_id(0)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    value = tl.load(values + line)
    lane = tl.arange(0, BLOCK)
    found = tl.full([], 0, tl.int32)
    for begin in range(0, VOCAB, BLOCK):
        token = begin + lane
        x = tl.load(row + token, mask=token < VOCAB, other=0.0)
        is_equal = (x == value) & (token < VOCAB)
        place = found + tl.cumsum(is_equal.to(tl.int32), 0) - 1
        tl.store(ids + line * COUNT + place, token, mask=is_equal & (place < COUNT))
        found += tl.sum(is_equal.to(tl.int32), 0)
    place = tl.arange(0, COUNT_P)
    nothing = tl.full([COUNT_P], VOCAB, tl.int32)
    tl.store(ids + line * COUNT + place, nothing, mask=(place >= found) & (place < COUNT))


@triton.jit
def read(values, logits, pairs, num_pairs, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Read the logits of pairs, whose rows are those of the buffer. Grid: blocks of pairs."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_one = pair < num_pairs
    row = tl.load(pairs + 2 * pair, mask=is_one, other=0).to(tl.int64)
    token = tl.load(pairs + 2 * pair + 1, mask=is_one, other=0)
    tl.store(values + pair, tl.load(logits + row * VOCAB + token, mask=is_one), mask=is_one)


@triton.jit
def copy_rows(changed, logits, rows, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Copy the rows as they are. Grid: (rows, blocks of tokens)."""
    line = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    tl.store(changed + line * VOCAB + token, tl.load(row + token, mask=token < VOCAB), mask=token < VOCAB)


@triton.jit
def write(changed, pairs, values, num_pairs, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Write values to pairs, whose rows are those of `changed`. Grid: blocks of pairs."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_one = pair < num_pairs
    row = tl.load(pairs + 2 * pair, mask=is_one, other=0).to(tl.int64)
    token = tl.load(pairs + 2 * pair + 1, mask=is_one, other=0)
    tl.store(changed + row * VOCAB + token, tl.load(values + pair, mask=is_one), mask=is_one)


@triton.jit
def penalise(changed, logits, rows, table, table_rows, repetitions, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Divide logits, or multiply them below 0, by the repetition penalty, and subtract what the table's row has.

    Where that is NaN, a logit stays. Grid: (rows, blocks of tokens).
    """
    line = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    offsets = table + tl.load(table_rows + line).to(tl.int64) * VOCAB
    repetition = tl.load(repetitions + line)
    x = tl.load(row + token, mask=token < VOCAB, other=0.0)
    offset = tl.load(offsets + token, mask=token < VOCAB, other=0.0)
    scaled = tl.where(x < 0, x * repetition, tl.div_rn(x, tl.zeros([BLOCK], tl.float32) + repetition))
    penalised = tl.where(offset == offset, scaled - offset, x)  # noqa: PLR0124 (NaN)
    tl.store(changed + line * VOCAB + token, penalised, mask=token < VOCAB)


@triton.jit
def apply_token_bitmask(changed, logits, rows, masks, VOCAB: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Set logits to -inf whose bit in `masks` int32 `[N, WORDS]` is 0: bit t % 32 of word t // 32 is token t's.

    Grid: (rows, blocks of tokens).
    """
    line = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = logits + tl.load(rows + line).to(tl.int64) * VOCAB
    x = tl.load(row + token, mask=token < VOCAB, other=0.0)
    word = tl.load(masks + line * WORDS + token // 32, mask=token < VOCAB, other=0)
    is_allowed = ((word >> (token % 32)) & 1) == 1
    tl.store(changed + line * VOCAB + token, tl.where(is_allowed, x, float("-inf")), mask=token < VOCAB)
