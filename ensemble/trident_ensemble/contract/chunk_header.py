"""What postprocessing must know of one of the core's responses, as the integers of the tensor `chunk`.

Owns the layout: table id, slot, secret, number, whether the stream ends, whether special tokens are left out of the
text; then three numbers for each sequence in the response. Never decodes, never acknowledges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError

#: Of `Part.num_characters`: no end to the text.
ALL = -1
_NUM_OWN = 6


class Part(NamedTuple):
    """One sequence of a response.

    Args:
        num_ids: of its row of `output_ids`, how many are its own; the others fill it up.
        num_silent: of these, how many at the end are no text.
        num_characters: of this response's text, how many count; ALL if all do.
    """

    num_ids: int
    num_silent: int = 0
    num_characters: int = ALL


class ChunkHeader(NamedTuple):
    """One response.

    Args:
        table_id: of the acknowledgement table; 0 if nobody wants an acknowledgement.
        slot: the stream's row in that table.
        secret: the stream's, which proves that the chunk is its own.
        number: of this chunk among the stream's, from 1 on; it is what to acknowledge.
        is_last: nothing more follows for its sequences.
        skip_special_tokens: special tokens are no text.
        parts: its sequences; exactly one while it streams.
    """

    table_id: int
    slot: int
    secret: int
    number: int
    is_last: bool
    skip_special_tokens: bool
    parts: tuple[Part, ...]

    def pack(self) -> list[int]:
        """Return the header as integers."""
        flags = [int(self.is_last), int(self.skip_special_tokens)]
        own = [self.table_id, self.slot, self.secret, self.number, *flags]
        return own + [number for part in self.parts for number in part]


def unpack(numbers: Sequence[int]) -> ChunkHeader:
    """Return the header in a tensor's values.

    Raises:
        RequestError: they are none.
    """
    field = tensors.CHUNK.name
    num_parts, rest = divmod(len(numbers) - _NUM_OWN, len(Part._fields))
    if num_parts < 1 or rest:
        raise RequestError(field, f"{len(numbers)} values are no header: {_NUM_OWN} and {len(Part._fields)} a sequence")
    table_id, slot, secret, number, is_last, skip = numbers[:_NUM_OWN]
    parts = tuple([Part(*numbers[start : start + 3]) for start in range(_NUM_OWN, len(numbers), 3)])
    for part in parts:
        num_ids, num_silent, num_characters = part
        if not 0 <= num_silent <= num_ids or num_characters < ALL:
            raise RequestError(field, f"{part} is no part of a response")
    return ChunkHeader(table_id, slot, secret, number, bool(is_last), bool(skip), parts)
