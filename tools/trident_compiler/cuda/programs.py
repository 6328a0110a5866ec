"""Programs of kernels of rows: how many numbers one has, and how many warps share them.

Owns these sizes. Never knows a kernel.
"""

from __future__ import annotations

#: Most numbers of one program that has a part of a row.
CHUNK = 1024


def warps(numbers: int) -> int:
    """Return how many warps share so many numbers: 8 for each thread, or more."""
    return min(16, max(1, numbers // 256))


def power(size: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (size - 1).bit_length()
