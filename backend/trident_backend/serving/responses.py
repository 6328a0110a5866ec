"""One response of the core, and the way back to a client.

Owns nothing but its fields. Never knows how a response is sent.
"""

from __future__ import annotations

import collections.abc as cabc
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_ensemble.contract import tensors
from trident_ensemble.contract.chunk_header import ChunkHeader, Part
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.tensors import TensorSpec


class Output(NamedTuple):
    """A tensor beside the two that every response has; its values without the batch dimension."""

    spec: TensorSpec
    values: npt.NDArray[Any]


class ResponseSlice(NamedTuple):
    """The part of one sequence's output that is in a response.

    Args:
        sequence: the sequence.
        num_ids: how many of the response's ids are its own, an echoed prompt's among them.
        start: index of the first of these in the output, without the echoed prompt.
        end: index behind the last of these.
    """

    sequence: Sequence
    num_ids: int
    start: int
    end: int


class Response(NamedTuple):
    """One response to a request, with the output of one or all of its sequences.

    Args:
        output_ids: int32 `[sequences, tokens]`, the shorter rows padded.
        header: what postprocessing must know.
        outputs: what else is said.
        is_final: nothing follows for the request.
    """

    output_ids: npt.NDArray[np.int32]
    header: ChunkHeader
    outputs: tuple[Output, ...] = ()
    is_final: bool = True


class Responder(Protocol):
    """The way back to one client."""

    def send(self, response: Response) -> None:
        """Send a response."""
        ...

    def fail(self, error: TridentError) -> None:
        """Send an error as the final response."""
        ...

    def is_cancelled(self) -> bool:
        """Return whether the client is known to be gone. Never called after the final response."""
        ...


def padded(rows: cabc.Sequence[cabc.Sequence[int]], pad_id: int) -> npt.NDArray[np.int32]:
    """Return rows of ids as one array, int32 `[rows, tokens]`, the shorter ones padded at their ends."""
    if len(rows) == 1:
        return np.array(rows, np.int32)
    ids = np.full((len(rows), max(map(len, rows))), pad_id, np.int32)
    for own, row in zip(ids, rows, strict=True):
        own[: len(row)] = row
    return ids


def nothing_generated() -> Response:
    """Return the answer to a request that asks to stop another, and to one that was stopped before it began.

    It has the tensors of any answer: one without them would never leave an ensemble.
    """
    header = ChunkHeader(0, 0, 0, 0, is_last=True, skip_special_tokens=True, parts=(Part(0),))
    reason = np.array([FinishReason.CANCELLED.value.encode()], np.object_)
    return Response(np.empty((1, 0), np.int32), header, (Output(tensors.FINISH_REASON, reason),))
