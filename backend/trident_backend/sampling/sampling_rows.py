"""The rows of one step as arrays: what each asks for, and the parameters of those that are sampled.

Owns the packing. Never reads a logit.
"""

from __future__ import annotations

import collections.abc as cabc
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Doubles, FloatArray, Indices, TokenIds
from trident_backend.sampling.philox import UIntArray, uniforms
from trident_backend.sequences.sampling_params import PACKED_PARAMS
from trident_backend.sequences.steps import Row

RowTraits = npt.NDArray[np.uint8]


def row_traits(rows: cabc.Sequence[Row]) -> RowTraits:
    """Return the `Traits` of each of a step's rows, `[R]`."""
    traits = [
        sequence.sampling.traits if position >= len(sequence.token_ids) else sequence.sampling.scored_traits
        for sequence, position, _ in rows
    ]
    return np.array(traits, np.uint8)


class SamplingRows(NamedTuple):
    """The n rows of a step that are sampled; parameters are those of `SamplingParams`.

    Args:
        rows: `[n]`, which rows of the step's logits, ascending.
        argmax: `[n]`, their most likely tokens, of equals the lowest ids.
        maxima: `[n]`, those tokens' logits, finite.
        temperatures: `[n]`, above 0.
        top_ks: `[n]`, 0 where all tokens are kept.
        top_ps: `[n]`.
        min_ps: `[n]`.
        seeds: `[n]`.
        indices: `[n]`.
        positions: `[n]`, of the tokens in their sequences.
    """

    rows: Indices
    argmax: TokenIds
    maxima: FloatArray
    temperatures: Doubles
    top_ks: TokenIds
    top_ps: Doubles
    min_ps: Doubles
    seeds: UIntArray
    indices: UIntArray
    positions: UIntArray

    def of(self, members: Indices) -> SamplingRows:
        """Return some of the rows, `members` of the n."""
        columns: Any = (column[members] for column in self)
        return SamplingRows(*columns)

    def uniforms(self, attempt: int = 0) -> Doubles:
        """Return random numbers in [0, 1), `[n]`; a row that is sampled several times has one for each attempt."""
        return uniforms(self.seeds, self.indices, self.positions, attempt)


def pack(
    rows: cabc.Sequence[Row], numbers: Indices, argmax: TokenIds, maxima: FloatArray, vocab_size: int
) -> SamplingRows:
    """Pack rows that are sampled.

    Args:
        rows: all of the step.
        numbers: `[n]`, which of them, ascending.
        argmax: `[n]`, their most likely tokens.
        maxima: `[n]`, those tokens' logits.
        vocab_size: a top_k of so many or more keeps all.
    """
    sampled = [rows[number] for number in numbers.tolist()]
    # The records' bytes one after another, which are read as columns without a look at any row.
    params = np.frombuffer(b"".join([row.sequence.sampling.packed for row in sampled]), PACKED_PARAMS)
    top_ks = params["top_k"]
    return SamplingRows(
        rows=numbers,
        argmax=argmax,
        maxima=maxima,
        temperatures=np.clip(params["temperature"], _LEAST_TEMPERATURE, 1 / _LEAST_TEMPERATURE),
        top_ks=np.where(top_ks < vocab_size, top_ks, 0),
        top_ps=params["top_p"],
        min_ps=params["min_p"],
        seeds=params["seed"],
        indices=params["index"],
        positions=np.array([row.position for row in sampled], np.uint64),
    )


#: Beyond this and its inverse the kernels' single precision would turn to zeros and infinities, with the same samples.
_LEAST_TEMPERATURE = 1e-30
