"""The names by which the compiler and the host of TensorRT networks know inputs and outputs.

Owns those names, the profiles' numbers and the alignment of addresses, so that both sides agree. Never runs or builds
anything.
"""

from __future__ import annotations

from collections.abc import Iterable

TOKEN_IDS, POSITION_IDS = "token_ids", "position_ids"
PAST_LENS, CONTEXT_LENS = "past_lens", "context_lens"
LOGIT_ROWS = "logit_rows"
#: The network's inputs beside the caches, in the order in which they lie in the upload.
INPUTS = (TOKEN_IDS, POSITION_IDS, PAST_LENS, CONTEXT_LENS, LOGIT_ROWS)
LOGITS = "logits"
#: Optimization profiles: many sequences of one token each, and one sequence of many.
DECODE_PROFILE, PREFILL_PROFILE = 0, 1
#: Every address that is bound to an input or an output is a multiple of so many bytes, and so each slot of a cache.
ALIGNMENT = 256


def caches(layer: int) -> tuple[str, str]:
    """Return the names of a layer's caches, of keys and of values."""
    return f"key_cache.{layer}", f"value_cache.{layer}"


def updated(cache: str) -> str:
    """Return the name of the output that is a cache after a step, in the same memory."""
    return f"new_{cache}"


class Operand:
    """The inputs and outputs of sampling's plans, beside the logits, which all of them read."""

    #: Rows of the logits' buffer; and pairs of a row and a token id.
    ROWS, PAIRS = "rows", "pairs"
    #: What plans find, or write.
    IDS, VALUES, SUMS = "ids", "values", "sums"
    #: What `chunk_exp_sums` takes for each row.
    MAXIMA, INVERSES, FLOORS = "maxima", "inverses", "floors"
    #: What `penalise` takes: the table of penalties, which of its rows, and the repetition penalties.
    TABLE, TABLE_ROWS, REPETITIONS = "table", "table_rows", "repetitions"
    #: What `apply_token_bitmask` takes.
    MASKS = "masks"
    #: The rows as a plan changed them.
    CHANGED = "changed"


class Sampling:
    """The plans of sampling's operations on the device, by the names of their files without `.plan`."""

    ARGMAX = "argmax"
    CHUNK_EXP_SUMS = "chunk_exp_sums"
    FIND_TIES = "find_ties"
    READ = "read"
    WRITE = "write"
    PENALISE = "penalise"
    APPLY_TOKEN_BITMASK = "apply_token_bitmask"  # noqa: S105 (a file's name)
    #: Every engine has these, and some of `top_k`.
    NEEDED = frozenset({ARGMAX, CHUNK_EXP_SUMS, FIND_TIES, READ, WRITE, PENALISE, APPLY_TOKEN_BITMASK})

    @staticmethod
    def top_k(count: int) -> str:
        """Return the name of the plan that finds the `count` largest logits of a row."""
        return f"top_k.{count}"

    @staticmethod
    def top_k_sizes(plans: Iterable[str]) -> list[int]:
        """Return the counts of the `top_k` plans among all, ascending."""
        return sorted(int(name.partition(".")[2]) for name in plans if name.startswith("top_k."))
