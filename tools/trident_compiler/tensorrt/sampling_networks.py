"""The operations on logits that sampling is made of, as TensorRT networks, for logits that lie on a GPU.

Owns the networks, their inputs, outputs and limits. Knows nothing of models, and never compiles or writes anything.

All read `logits` float32 `[B, V]`, a buffer of rows. `rows` int32 `[N]` names some of them; `pairs` int32 `[P, 2]` are
rows and token ids. A network that changes logits gives the rows named as they become, `changed` float32 `[N, V]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trident_backend.engine.gpu.names import Operand, Sampling
from trident_backend.engine.protocol import CHUNK_WIDTH
from trident_backend.engine.tensorrt.names import LOGITS
from trident_compiler.tensorrt.sampling_layers import SamplingLayers

Shape = tuple[int, ...]

#: Rows of one run, at most: what lies between the layers may be of as many whole rows.
MAX_ROWS = 128
#: Pairs of one run, at most.
MAX_PAIRS = 65_536
#: How many of the largest there are networks for; TensorRT finds no more than the last.
TOP_K_SIZES = (64, 1024, 3840)
#: Tokens with the same logit that one run finds.
NUM_TIES = 64


@dataclass(frozen=True)
class SamplingNetwork:
    """One operation on logits, as a small network.

    Args:
        name: of its plan's file, without `.plan`.
        define: adds its layers.
        profile: of each input the smallest, the usual and the largest shape.
        vocab_size: V.
    """

    name: str
    define: Callable[[SamplingLayers], None]
    profile: Mapping[str, tuple[Shape, Shape, Shape]]
    vocab_size: int

    def write(self, trt: Any, network: Any) -> SamplingLayers:
        """Write the layers of the network.

        Args:
            trt: the module, `tensorrt` or `tensorrt_rtx`.
            network: an empty, strongly typed `INetworkDefinition`.

        Returns:
            what must be kept until the network is compiled: TensorRT reads constants where they are.
        """
        layers = SamplingLayers(trt, network, self.vocab_size)
        self.define(layers)
        return layers


def sampling_networks(vocab_size: int, max_rows: int) -> tuple[SamplingNetwork, ...]:
    """Return all sampling networks of an engine.

    Args:
        vocab_size: V.
        max_rows: B, rows of the buffer in which a step's logits lie.
    """
    logits = ((1, vocab_size), (max_rows, vocab_size), (max_rows, vocab_size))
    num_rows = min(max_rows, MAX_ROWS)
    rows = ((1,), (num_rows,), (num_rows,))
    pairs = ((1, 2), (1024, 2), (MAX_PAIRS, 2))
    table = (num_rows, vocab_size)
    num_bytes = -(-vocab_size // 32) * 4
    by_row = {LOGITS: logits, Operand.ROWS: rows}
    weighed = {**by_row, **dict.fromkeys((Operand.MAXIMA, Operand.INVERSES, Operand.FLOORS), rows)}
    penalised = {**by_row, **dict.fromkeys((Operand.TABLE_ROWS, Operand.REPETITIONS), rows)}
    sizes = sorted({min(size, vocab_size) for size in TOP_K_SIZES})
    networks: list[tuple[str, Callable[[SamplingLayers], None], dict[str, tuple[Shape, Shape, Shape]]]] = [
        (Sampling.ARGMAX, argmax, by_row),
        (Sampling.CHUNK_EXP_SUMS, chunk_exp_sums, weighed),
        *((Sampling.top_k(size), _TopK(size), by_row) for size in sizes),
        (Sampling.FIND_TIES, find_ties, {**by_row, Operand.VALUES: rows}),
        (Sampling.READ, read, {LOGITS: logits, Operand.PAIRS: pairs}),
        (Sampling.WRITE, write, {**by_row, Operand.PAIRS: pairs, Operand.VALUES: ((1,), (1024,), (MAX_PAIRS,))}),
        (Sampling.PENALISE, penalise, {**penalised, Operand.TABLE: ((1, vocab_size), table, table)}),
        (
            Sampling.APPLY_TOKEN_BITMASK,
            apply_token_bitmask,
            {**by_row, Operand.MASKS: ((1, num_bytes), (num_rows, num_bytes), (num_rows, num_bytes))},
        ),
    ]
    return tuple(SamplingNetwork(*network, vocab_size) for network in networks)


def argmax(layers: SamplingLayers) -> None:
    """`ids` int32 `[N]`, of equals the lowest, and `values` float32 `[N]`, their logits: +inf where any is NaN."""
    rows = layers.rows()
    # TensorRT does not document what a maximum does with NaN.
    rows = layers.select(layers.unary("ISNAN", rows), layers.number(np.inf), rows)
    maxima = layers.reduce("MAX", rows, 1, keep=True)
    none = layers.constant(np.full((1, 1), layers.vocab_size - 1, np.int32))
    ids = layers.select(layers.elementwise("EQUAL", rows, maxima), layers.token_ids(np.int32), none)
    ids = layers.reduce("MIN", ids, 1, keep=True)
    # Where all are -inf, a maximum may be the lowest finite number.
    values = layers.gather_each(rows, ids)
    layers.output(Operand.IDS, layers.reshape(ids, -1))
    layers.output(Operand.VALUES, layers.reshape(values, -1))


def chunk_exp_sums(layers: SamplingLayers) -> None:
    """`sums` float32 `[N, C]`: the sums of each row's weights by chunk, with `maxima`, `inverses` of temperatures and
    `floors` float32 `[N]`, the latter -inf where there is none."""
    rows, width = layers.rows(), layers.vocab_size
    exponents = layers.elementwise("SUB", rows, layers.column(Operand.MAXIMA))
    weights = layers.unary("EXP", layers.elementwise("PROD", exponents, layers.column(Operand.INVERSES)))
    is_below = layers.elementwise("LESS", rows, layers.column(Operand.FLOORS))
    weights = layers.select(is_below, layers.number(0), weights)
    whole = width // CHUNK_WIDTH * CHUNK_WIDTH
    parts = []
    if whole:
        chunked = weights if whole == width else layers.columns(weights, 0, whole)
        parts.append(layers.reduce("SUM", layers.reshape(chunked, -1, whole // CHUNK_WIDTH, CHUNK_WIDTH), 2))
    if whole < width:
        parts.append(layers.reduce("SUM", layers.columns(weights, whole, width - whole), 1, keep=True))
    layers.output(Operand.SUMS, parts[0] if len(parts) == 1 else layers.concatenate(*parts, axis=1))


@dataclass(frozen=True)
class _TopK:
    """`values` float32 and `ids` int32 `[N, count]`, the largest first; among equals any."""

    count: int

    def __call__(self, layers: SamplingLayers) -> None:
        values, ids = layers.largest(layers.rows(), self.count)
        layers.output(Operand.VALUES, values)
        layers.output(Operand.IDS, ids)


def find_ties(layers: SamplingLayers) -> None:
    """`ids` float32 `[N, NUM_TIES]`: the lowest ids of the logits that are `values` float32 `[N]`, ascending; V and
    more where there are no more."""
    is_equal = layers.elementwise("EQUAL", layers.rows(), layers.column(Operand.VALUES))
    # Single precision holds every id: vocabularies are far below 2^24.
    order = layers.select(
        is_equal,
        layers.constant(-np.arange(layers.vocab_size, dtype=np.float32)[None]),
        layers.number(-layers.vocab_size),
    )
    values, _ = layers.largest(order, min(NUM_TIES, layers.vocab_size))
    layers.output(Operand.IDS, layers.unary("NEG", values))


def read(layers: SamplingLayers) -> None:
    """`values` float32 `[P]`."""
    layers.output(Operand.VALUES, layers.gather_pairs(layers.logits, layers.input(Operand.PAIRS, layers.trt.int32, 2)))


def write(layers: SamplingLayers) -> None:
    """`changed`: with `values` float32 `[P]` at `pairs`, whose rows are indices into `rows`."""
    pairs, values = layers.input(Operand.PAIRS, layers.trt.int32, 2), layers.input(Operand.VALUES, layers.trt.float32)
    layers.output(Operand.CHANGED, layers.scatter_pairs(layers.rows(), pairs, values))


def penalise(layers: SamplingLayers) -> None:
    """`changed`: the rows named, changed by the rows of `table` float32 `[T, V]` that `table_rows` int32 `[N]` name.
    Where the table is NaN a logit stays as it is. All others are divided, or below 0 multiplied, by `repetitions`
    float32 `[N]`, and then what the table has is subtracted."""
    rows, repetitions = layers.rows(), layers.column(Operand.REPETITIONS)
    table = layers.network.add_input(Operand.TABLE, layers.trt.float32, (-1, layers.vocab_size))
    offsets = layers.gather(table, layers.input(Operand.TABLE_ROWS, layers.trt.int32))
    is_negative = layers.elementwise("LESS", rows, layers.number(0))
    products, quotients = (layers.elementwise(name, rows, repetitions) for name in ("PROD", "DIV"))
    penalised = layers.elementwise("SUB", layers.select(is_negative, products, quotients), offsets)
    layers.output(Operand.CHANGED, layers.select(layers.unary("ISNAN", offsets), rows, penalised))


def apply_token_bitmask(layers: SamplingLayers) -> None:
    """`changed`: -inf where `masks` uint8 `[N, bytes]` has no bit; token t is bit t % 8 of byte t // 8."""
    width = -(-layers.vocab_size // 32) * 4
    masks = layers.cast(layers.input(Operand.MASKS, layers.trt.uint8, width), layers.trt.int32)
    # TensorRT has no operations on bits: they are looked up.
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.bool_)
    allowed = layers.reshape(layers.gather(layers.constant(bits), masks), -1, 8 * width)
    if 8 * width > layers.vocab_size:
        allowed = layers.columns(allowed, 0, layers.vocab_size)
    layers.output(Operand.CHANGED, layers.select(allowed, layers.rows(), layers.number(-np.inf)))
