"""The names of sampling's operations on a GPU and of what they take and give, and the alignment of addresses there.

Owns what a compiler and the hosts must agree on, whichever way the operations are compiled. Never runs or builds
anything.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Every address that is bound to an input, an output or a weight is a multiple of so many bytes.
ALIGNMENT = 256


class Operand:
    """The inputs and outputs of sampling's operations, beside the logits, which all of them read."""

    #: Rows of the logits' buffer; and pairs of a row and a token id.
    ROWS, PAIRS = "rows", "pairs"
    #: What operations find, or write.
    IDS, VALUES, SUMS = "ids", "values", "sums"
    #: What `chunk_exp_sums` takes for each row.
    MAXIMA, INVERSES, FLOORS = "maxima", "inverses", "floors"
    #: What `penalise` takes: the table of penalties, which of its rows, and the repetition penalties.
    TABLE, TABLE_ROWS, REPETITIONS = "table", "table_rows", "repetitions"
    #: What `apply_token_bitmask` takes.
    MASKS = "masks"
    #: The rows as an operation changed them.
    CHANGED = "changed"


class Sampling:
    """Sampling's operations on the device, by the names of what was compiled for them."""

    ARGMAX = "argmax"
    CHUNK_EXP_SUMS = "chunk_exp_sums"
    FIND_TIES = "find_ties"
    READ = "read"
    WRITE = "write"
    PENALISE = "penalise"
    APPLY_TOKEN_BITMASK = "apply_token_bitmask"  # noqa: S105 (an operation's name)
    #: Every engine has these, and some of `top_k`.
    NEEDED = frozenset({ARGMAX, CHUNK_EXP_SUMS, FIND_TIES, READ, WRITE, PENALISE, APPLY_TOKEN_BITMASK})

    @staticmethod
    def top_k(count: int) -> str:
        """Return the name of the operation that finds the `count` largest logits of a row."""
        return f"top_k.{count}"

    @staticmethod
    def top_k_sizes(names: Iterable[str]) -> list[int]:
        """Return the counts of the `top_k` operations among all, ascending."""
        return sorted(int(name.partition(".")[2]) for name in names if name.startswith("top_k."))
