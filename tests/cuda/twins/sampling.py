"""The kernels of `kernels/sampling.py` in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.cuda.calls import Array, Call


def argmax(call: Call) -> None:
    logits = _rows(call)
    logits = np.where(np.isnan(logits), np.float32(np.inf), logits)
    ids = logits.argmax(axis=1)
    call.store("ids", ids)
    call.store("values", logits[np.arange(len(ids)), ids])


def chunk_exp_sums(call: Call) -> None:
    logits, width, num_chunks = _rows(call), call.constants["WIDTH"], call.constants["NUM_CHUNKS"]
    maxima, inverses, floors = (_column(call, name) for name in ("maxima", "inverses", "floors"))
    with np.errstate(all="ignore"):
        weights = np.where(logits < floors, np.float32(0), np.exp((logits - maxima) * inverses))
        padded = np.pad(weights, ((0, 0), (0, int(num_chunks * width) - weights.shape[1])))
        call.store("sums", padded.reshape(len(logits), int(num_chunks), int(width)).sum(axis=2))


def select(call: Call) -> None:
    count = call.number("count")
    keys = _ordered(_rows(call).view(np.int32))
    smallest = np.partition(keys, -count, axis=1)[:, -count, None]
    # Those above come first, and of the equal ones those with the lowest ids.
    kind = np.where(keys > smallest, 0, np.where(keys == smallest, 1, 2))
    ids = np.argsort(kind, axis=1, kind="stable")[:, :count]
    call.store("keys", np.take_along_axis(keys, ids, axis=1))
    call.store("key_ids", ids)


def rank(call: Call) -> None:
    shape = call.grid[0], call.number("count")
    keys, ids = call.read("keys", shape), call.read("key_ids", shape)
    order = np.argsort(-keys.astype(np.int64), axis=1, kind="stable")
    call.store("values", _ordered(np.take_along_axis(keys, order, axis=1)).view(np.float32))
    call.store("ids", np.take_along_axis(ids, order, axis=1))


def find_ties(call: Call) -> None:
    logits, values, count = _rows(call), _column(call, "values"), int(call.constants["COUNT"])
    found = np.full((len(logits), count), call.constants["VOCAB"], np.int32)
    for row, is_equal in zip(found, logits == values, strict=True):
        ids = np.flatnonzero(is_equal)[:count]
        row[: len(ids)] = ids
    call.store("ids", found)


def read(call: Call) -> None:
    call.store("values", call.gather("logits", _pairs(call), 1)[:, 0])


def copy_rows(call: Call) -> None:
    call.store("changed", _rows(call))


def write(call: Call) -> None:
    call.scatter("changed", _pairs(call), call.read("values", (call.number("num_pairs"),))[:, None])


def penalise(call: Call) -> None:
    logits, repetitions = _rows(call), _column(call, "repetitions")
    vocab_size = call.constants["VOCAB"]
    offsets = call.gather("table", call.read("table_rows", (len(logits),)) * vocab_size, int(vocab_size))
    with np.errstate(all="ignore"):
        scaled = np.where(logits < 0, logits * repetitions, logits / repetitions)
        call.store("changed", np.where(np.isnan(offsets), logits, scaled - offsets))


def apply_token_bitmask(call: Call) -> None:
    logits = _rows(call)
    words = call.read("masks", (len(logits), int(call.constants["WORDS"])))
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
    call.store("changed", np.where(bits == 1, logits, np.float32(-np.inf)))


def _rows(call: Call) -> Array:
    """The rows that are asked for, `[N, V]`."""
    vocab_size = int(call.constants["VOCAB"])
    rows = call.read("rows", (call.grid[0],)).astype(np.int64)
    return call.gather("logits", rows * vocab_size, vocab_size)


def _column(call: Call, name: str) -> Array:
    """A number for each row, `[N, 1]`."""
    return call.read(name, (call.grid[0], 1))


def _pairs(call: Call) -> npt.NDArray[np.int64]:
    """Where the pairs lie in rows of V."""
    pairs = call.read("pairs", (call.number("num_pairs"), 2)).astype(np.int64)
    places: npt.NDArray[np.int64] = pairs[:, 0] * int(call.constants["VOCAB"]) + pairs[:, 1]
    return places


def _ordered(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The bits of floats as whole numbers that are ordered as they are; and those as the bits."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
