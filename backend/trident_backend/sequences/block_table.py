"""The block table of one sequence, in the form in which a step's input is packed.

Owns the form. Never decides which block belongs to which sequence: the block manager does.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    _Integers = array[int]
else:  # not until Python 3.12 can the class itself be subscripted
    _Integers = array


class BlockTable(_Integers):
    """The numbers of a sequence's KV blocks, first to last, as 32-bit integers in one piece of memory.

    It grows in place like a list, and its bytes are copied without reading any number. It equals any list of the
    same numbers.
    """

    __slots__ = ()

    def __new__(cls) -> BlockTable:
        """Make an empty table."""
        return cast("BlockTable", super().__new__(cls, "i"))

    def clear(self) -> None:
        """Remove all blocks."""
        del self[:]

    def __deepcopy__(self, memo: object) -> BlockTable:
        copied = BlockTable()
        copied.extend(self)
        return copied

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, array)) and self.tolist() == list(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None
