"""The names of kernels that sampling's operations are made of, beside those that bear an operation's name.

Owns what the compiler and the host must agree on. Never runs or builds anything.
"""

from __future__ import annotations

#: Copies rows before `Sampling.WRITE` changes them.
COPY_ROWS = "copy_rows"


def rank(count: int) -> str:
    """Return the name of the kernel that puts in order what `Sampling.top_k(count)` has found."""
    return f"rank.{count}"
