"""The rows of one step that draw, packed into arrays.

Owns the packing. Never looks at a logit.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any, NamedTuple

import numpy as np

from trident_backend.engine.protocol import Doubles, FloatArray, Indices, TokenIds
from trident_backend.sampling.philox import UIntArray, uniforms
from trident_backend.sequences.steps import Row


class SamplingRows(NamedTuple):
    """Of n rows; see `SamplingParams` for what is not said here.

    Args:
        rows: `[n]`, which rows of the step's logits, ascending.
        likeliest: `[n]`, their likeliest tokens, of equals the lowest ids.
        maxima: `[n]`, those tokens' logits, finite.
        temperatures: `[n]`, above 0.
        top_ks: `[n]`, 0 where all tokens are kept.
        top_ps: `[n]`.
        min_ps: `[n]`.
        seeds: `[n]`.
        indices: `[n]`.
        places: `[n]`, of the tokens to draw.
    """

    rows: Indices
    likeliest: TokenIds
    maxima: FloatArray
    temperatures: Doubles
    top_ks: TokenIds
    top_ps: Doubles
    min_ps: Doubles
    seeds: UIntArray
    indices: UIntArray
    places: UIntArray

    def of(self, members: Indices) -> SamplingRows:
        """Some of them."""
        columns: Any = (column[members] for column in self)
        return SamplingRows(*columns)

    def uniforms(self, attempt: int = 0) -> Doubles:
        """Random numbers `[n]`; a row that draws several times has one for each attempt."""
        return uniforms(self.seeds, self.indices, self.places, attempt)


def draws(row: Row) -> bool:
    """Whether the row's token is drawn; else it is the likeliest."""
    params = row.sequence.sampling
    return params.temperature > 0 and params.top_k != 1 and params.top_p > 0


def pack(rows: Rows[Row], numbers: Indices, likeliest: TokenIds, maxima: FloatArray, vocab_size: int) -> SamplingRows:
    """Pack rows that draw.

    Args:
        rows: all of the step.
        numbers: `[n]`, which of them.
        likeliest: `[n]`, see `SamplingRows`.
        maxima: `[n]`, see `SamplingRows`.
        vocab_size: a top_k of so many or more keeps all.
    """
    chosen = [rows[number] for number in numbers.tolist()]
    params = [row.sequence.sampling for row in chosen]
    temperatures = np.array([p.temperature for p in params], np.float64)
    return SamplingRows(
        rows=numbers,
        likeliest=likeliest,
        maxima=maxima,
        temperatures=np.clip(temperatures, _LEAST_TEMPERATURE, 1 / _LEAST_TEMPERATURE),
        top_ks=np.array([p.top_k if p.top_k < vocab_size else 0 for p in params], np.int64),
        top_ps=np.array([p.top_p for p in params], np.float64),
        min_ps=np.array([p.min_p for p in params], np.float64),
        seeds=np.array([p.seed for p in params], np.uint64),
        indices=np.array([p.index for p in params], np.uint64),
        places=np.array([row.position for row in chosen], np.uint64),
    )


#: Beyond this and its inverse the kernels' single precision would turn to zeros and infinities, with the same draws.
_LEAST_TEMPERATURE = 1e-30
