"""How a step's attention is divided into items, each of which a program of `attention.attend` computes for each head.

A tile is one or a few neighbouring tokens of a sequence, and the keys that any of them sees. Sequences whose tokens fit
into one small tile, which generate, have that one; all others have large tiles. Where that leaves a GPU without work, a
tile's keys are divided into pieces, whose partial results are merged.

The columns of items and merges are compiled into engines: `FORMAT_VERSION` of `program.json` changes with them.

Owns the division, and how much of it any step of a size has at most. Never touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trident_backend.engine.gpu.program import AttentionKind
from trident_backend.engine.protocol import Indices, Int32Array

#: Where keys begin and pieces are as long as multiples of: a kernel loads keys by lines of memory, and by tiles.
_FIRST_KEY_MULTIPLE = 16
_PIECE_MULTIPLE = 64
#: Keys of a piece at least: fewer cost more to merge than they save.
_LEAST_PIECE = 256


@dataclass(frozen=True)
class AttentionPlan:
    """The attention of one step.

    Args:
        few: `[n, 8]`, the items of small tiles: begin of the sequence's table, first token on the packed axis, number
            of tokens, position of the first token, first key, end of keys, partial or -1, 1 for the first piece.
        many: `[n, 8]`, the items of large tiles.
        merges_few: `[m, 4]`, the divided small tiles: first token, number of tokens, first partial, number of partials.
        merges_many: `[m, 4]`, the divided large tiles; their partials are numbered apart.
        num_partials_few: of small tiles.
        num_partials_many: of large tiles.
    """

    few: Int32Array
    many: Int32Array
    merges_few: Int32Array
    merges_many: Int32Array
    num_partials_few: int
    num_partials_many: int


@dataclass(frozen=True)
class PlanBounds:
    """The most that the plan of any step of a size has: items, merges and partials, of small and of large tiles."""

    few: int
    many: int
    merges_few: int
    merges_many: int
    partials_few: int
    partials_many: int


class AttentionPlanner:
    """Divides the attention of steps, for layers that are alike.

    A sequence's own lengths say how it is divided: its pieces are as many programs as half of those that the GPU runs
    at a time, which is enough to keep the GPU's memory busy, but none is shorter than 256 keys. On 132 multiprocessors
    and with 8 heads, 2000 keys are 8 pieces, and 100,000 keys are 33.

    All pieces of a step together are no more programs than the GPU runs at a time. This bounds captured grids and the
    memory of partial results whatever the contexts are, and a step that would have more has enough work without them:
    there, the least length of a piece is doubled, for all sequences alike, until they are few enough. This one number
    is all that the division of a sequence depends on beside its own lengths.

    Args:
        kind: of the layers.
        num_programs: how many programs of a kernel the GPU runs at a time, about 4 for each multiprocessor.
    """

    def __init__(self, kind: AttentionKind, num_programs: int) -> None:
        self._kind = kind
        self._few_len = kind.few_len
        self._many_len = kind.many_len
        assert 1 <= self._few_len <= self._many_len, "a tile holds the rows of one token, and a large one is no smaller"
        #: Pieces of all divided tiles of a step, and of the tiles of one sequence, at most.
        self._max_partials = num_programs // kind.num_programs
        self._max_pieces = max(1, self._max_partials // 2)

    def plan(self, past_lens: Int32Array, subsequence_begins: Int32Array, table_begins: Int32Array) -> AttentionPlan:
        """Divide a step. Items that take longest come first.

        Args:
            past_lens: `[S]`, as `StepBatch` has them.
            subsequence_begins: `[S + 1]`, likewise; every sequence has a token.
            table_begins: `[S]`, or longer, where the tables of the sequences begin.
        """
        lens = subsequence_begins[1:] - subsequence_begins[:-1]
        sequences = np.array([table_begins[: len(lens)], subsequence_begins[:-1], lens, past_lens])
        is_few = lens <= self._few_len
        few, merges_few, num_partials_few = self._divide(sequences.compress(is_few, axis=1), 1)
        tiles, num_tiles = _cut(sequences.compress(~is_few, axis=1), self._many_len)
        many, merges_many, num_partials_many = self._divide(tiles, num_tiles)
        return AttentionPlan(few, many, merges_few, merges_many, num_partials_few, num_partials_many)

    def bounds(self, num_tokens: int, num_seqs: int | None = None) -> PlanBounds:
        """Return what the plan of no step exceeds that has at most so many tokens.

        Args:
            num_tokens: of the step.
            num_seqs: sequences of the step, at most; as many as tokens by default.
        """
        num_seqs = num_tokens if num_seqs is None else min(num_seqs, num_tokens)
        few, merges_few, partials_few = self._bounds(num_seqs, self._few_len)
        # The last tile of a sequence may be all but empty, and a sequence with large tiles has some tokens.
        num_large = min(num_seqs, num_tokens // (self._few_len + 1))
        num_tiles = (num_tokens + num_large * (self._many_len - 1)) // self._many_len if num_large else 0
        many, merges_many, partials_many = self._bounds(num_tiles, self._many_len)
        return PlanBounds(few, many, merges_few, merges_many, partials_few, partials_many)

    def _divide(self, tiles: Int32Array, num_tiles: Int32Array | int) -> tuple[Int32Array, Int32Array, int]:
        """Return items, merges and the number of partials.

        Args:
            tiles: `[4, n]`, of each the first four numbers of an item.
            num_tiles: how many the tile's sequence has.
        """
        if not tiles.size:
            return np.empty((0, 8), np.int32), np.empty((0, 4), np.int32), 0
        _, _, lens, positions = tiles
        ends = positions + lens
        begins = self._first_keys(positions)
        num_keys = ends - begins
        # Pieces of one tile are equally long; where that makes one of them superfluous, there is one less.
        length = _multiple(_ceil(num_keys, self._num_pieces(num_keys, num_tiles)), _PIECE_MULTIPLE)
        pieces = _ceil(num_keys, length)
        order = np.minimum(length, num_keys).argsort(kind="stable")[::-1]
        return _items(np.array([*tiles, begins, ends, length, pieces]).take(order, axis=1))

    def _first_keys(self, positions: Int32Array) -> Int32Array:
        """Return the first key that a tile reads, from the position of its first token."""
        if not self._kind.window:
            return np.zeros_like(positions)
        first: Int32Array = np.maximum(positions - (self._kind.window - 1), 0)
        return first & -_FIRST_KEY_MULTIPLE

    def _num_pieces(self, num_keys: Int32Array, num_tiles: Int32Array | int) -> Int32Array:
        """Return into how many pieces each tile is divided, before their lengths are rounded."""
        most = np.maximum(self._max_pieces // num_tiles, 1)
        least_piece = _LEAST_PIECE
        while True:
            pieces: Int32Array = np.minimum(_ceil(num_keys, least_piece), most)
            if int(pieces.sum()) - np.count_nonzero(pieces == 1) <= self._max_partials:
                return pieces
            least_piece *= 2

    def _bounds(self, num_tiles: int, tile_len: int) -> tuple[int, int, int]:
        """Return the bounds of items, merges and partials of so many tiles."""
        most = self._max_pieces
        if self._kind.window:
            num_keys = tile_len + self._kind.window - 1 + _FIRST_KEY_MULTIPLE - 1
            most = min(most, -(-num_keys // _LEAST_PIECE))
        if most == 1 or not num_tiles:
            return num_tiles, 0, 0
        num_partials = min(self._max_partials, num_tiles * most)
        # The fewest divided tiles that have all of the pieces leave the most undivided.
        divided = {min(num_tiles, self._max_partials // most), min(num_tiles, -(-self._max_partials // most))}
        num_items = max(num_tiles - count + min(self._max_partials, count * most) for count in divided)
        return num_items, min(num_tiles, self._max_partials // 2), num_partials


def _cut(sequences: Int32Array, tile_len: int) -> tuple[Int32Array, Int32Array]:
    """Return the tiles `[4, n]` that sequences `[4, S]` are cut into, and of each how many its sequence has."""
    if not sequences.size:
        return sequences, sequences[0]
    num_tiles = _ceil(sequences[2], tile_len)
    owners, indices = _runs(num_tiles)
    tiles = sequences.take(owners, axis=1)
    offsets = indices * tile_len
    tiles[1] += offsets
    tiles[2] = np.minimum(tiles[2] - offsets, tile_len)
    tiles[3] += offsets
    return tiles, num_tiles[owners]


def _items(tiles: Int32Array) -> tuple[Int32Array, Int32Array, int]:
    """Return items, merges and the number of partials of tiles `[8, n]`, which end with length and number of pieces."""
    pieces = tiles[7]
    owners, indices = _runs(pieces)
    items = tiles.take(owners, axis=1)
    begins, ends, length, num_pieces = items[4:]
    begins += indices * length
    np.minimum(ends, begins + length, out=ends)
    is_partial = num_pieces > 1
    items[6] = np.where(is_partial, is_partial.cumsum() - 1, -1)
    items[7] = indices == 0
    _, firsts, lens, _, _, _, _, divided = tiles.compress(pieces > 1, axis=1)
    merges = np.array([firsts, lens, _begins(divided), divided])
    return np.ascontiguousarray(items.T), np.ascontiguousarray(merges.T), int(divided.sum())


def _runs(lens: Int32Array) -> tuple[Indices, Int32Array]:
    """Return for each element of several runs of these lengths which run it is of, and its index in the run."""
    owners = np.arange(len(lens)).repeat(lens)
    return owners, np.arange(len(owners), dtype=np.int32) - _begins(lens)[owners]


def _begins(lens: Int32Array) -> Int32Array:
    """Return where each of several runs of these lengths begins that follow one another."""
    return lens.cumsum(dtype=np.int32) - lens


def _ceil(numbers: Int32Array, divisors: Int32Array | int) -> Int32Array:
    """Return quotients, rounded up."""
    return -(-numbers // divisors)


def _multiple(numbers: Int32Array, factor: int) -> Int32Array:
    """Return numbers rounded up to multiples of a power of two."""
    return numbers + (factor - 1) & -factor
