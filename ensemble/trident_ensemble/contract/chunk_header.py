"""What postprocessing must know of one of the core's responses, as the integers of the tensor `chunk`.

Owns the layout: version, table id, column, secret, number, whether the stream ends, whether special tokens are left out
of the text, how many context ids and how many markers there are; then three numbers for each sequence in the response;
then the markers; then the context ids. Never decodes, never acknowledges.
"""

from __future__ import annotations

import collections.abc as cabc
from typing import NamedTuple

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError

#: Of `Part.num_characters`: no end to the text.
ALL = -1
#: Changes with the layout, so that a core and a postprocessing of different releases do not misread each other.
VERSION = 3
#: The most markers that a request may ask for.
MAX_MARKERS = 16
_NUM_OWN = 9
_MAX_ID = 2**31 - 1


class Part(NamedTuple):
    """One sequence of a response.

    Args:
        num_ids: of its row of `output_ids`, how many are its own; the rest is padding.
        num_hidden: of these, how many at the end are not text.
        num_characters: of this response's text, how many count; ALL if all do.
    """

    num_ids: int
    num_hidden: int = 0
    num_characters: int = ALL


class ChunkHeader(NamedTuple):
    """The header of one response.

    Args:
        table_id: of the acknowledgement table; 0 if no acknowledgement is wanted.
        column: the stream's column in that table.
        secret: the stream's, which proves that the chunk is its own.
        number: of this chunk among the stream's, from 1 on; it is what to acknowledge.
        is_last: nothing more follows for its sequences.
        skip_special_tokens: special tokens are not text.
        parts: its sequences; exactly one while it streams.
        context_ids: the ids before those of its one sequence that decoding these needs.
        marker_ids: tokens to leave out of the text, and to report; at most MAX_MARKERS.
    """

    table_id: int
    column: int
    secret: int
    number: int
    is_last: bool
    skip_special_tokens: bool
    parts: tuple[Part, ...]
    context_ids: cabc.Sequence[int] = ()
    marker_ids: cabc.Sequence[int] = ()

    def pack(self) -> list[int]:
        """Return the header as integers."""
        numbers = [
            VERSION, self.table_id, self.column, self.secret, self.number, int(self.is_last),
            int(self.skip_special_tokens), len(self.context_ids), len(self.marker_ids),
        ]  # fmt: skip
        for part in self.parts:
            numbers += part
        numbers += self.marker_ids
        numbers += self.context_ids
        return numbers


def unpack(numbers: cabc.Sequence[int]) -> ChunkHeader:
    """Return the header in a tensor's values.

    Raises:
        RequestError: they are not a header.
    """
    if not numbers or numbers[0] != VERSION:
        raise _refusal(f"must begin with its version, {VERSION}")
    if len(numbers) < _NUM_OWN:
        raise _refusal(f"must hold at least {_NUM_OWN} values, not {len(numbers)}")
    _, table_id, column, secret, number, is_last, skip, num_context, num_markers = numbers[:_NUM_OWN]
    begin = len(numbers) - num_context
    end = begin - num_markers
    num_parts, rest = divmod(end - _NUM_OWN, len(Part._fields))
    if num_context < 0 or not 0 <= num_markers <= MAX_MARKERS or num_parts < 1 or rest:
        raise _refusal(
            f"{len(numbers)} values are not a header: {_NUM_OWN}, {len(Part._fields)} a sequence, and {num_context} "
            f"context ids beside {num_markers} of at most {MAX_MARKERS} markers"
        )
    parts = tuple([Part(*numbers[start : start + 3]) for start in range(_NUM_OWN, end, 3)])
    for part in parts:
        num_ids, num_hidden, num_characters = part
        if not 0 <= num_hidden <= num_ids or num_characters < ALL:
            raise _refusal(f"{part} is not a part of a response")
    context_ids, marker_ids = numbers[begin:], numbers[end:begin]
    if context_ids and num_parts > 1:
        raise _refusal("must have no context ids: only a stream of one sequence has a context")
    if context_ids and not 0 <= min(context_ids) <= max(context_ids) <= _MAX_ID:
        raise _refusal(f"context ids must be from 0 to {_MAX_ID}")
    return ChunkHeader(table_id, column, secret, number, bool(is_last), bool(skip), parts, context_ids, marker_ids)


def _refusal(problem: str) -> RequestError:
    return RequestError(tensors.CHUNK.name, problem)
