"""Kernels that the tests of the compiler compile: some right, some wrong in a way of their own.

Owns them. Never holds one that an engine has.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, N803, PLR0917
from __future__ import annotations

import os
import subprocess
from typing import NoReturn

import triton
import triton.language as tl


@triton.jit
def add(out, x, count, SIZE: tl.constexpr):
    """Write `x + 1`."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at, mask=at < count) + 1.0, mask=at < count)


@triton.jit
def product(out, x, weight, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Write a tile of `x @ weight.T`."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, count, DEPTH):
        at = begin + depth
        left = tl.load(x + row[:, None] * 4096 + at[None, :])
        right = tl.load(weight + column[:, None] * 4096 + at[None, :])
        total += tl.dot(left, right.T)
    tl.store(out + row[:, None] * COLUMNS + column[None, :], total)


@triton.jit
def many_numbers(out, x, count, SIZE: tl.constexpr):
    """Hold more numbers than there are registers, all through a loop."""
    at = tl.arange(0, SIZE)
    first = tl.load(x + at)
    total = first
    for _ in range(count):
        total = total * first + tl.sum(total)
    tl.store(out + at, total)


@triton.jit
def misspelled(out, x, SIZE: tl.constexpr):
    """Name a function that there is none of."""
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.no_such_function(tl.load(x + at)))


@triton.jit
def uneven(out, SIZE: tl.constexpr):
    """Ask for a range whose size is no power of two."""
    tl.store(out + tl.arange(0, SIZE), 0.0)


def __getattr__(name: str) -> NoReturn:
    """Do at the name of a kernel what a compiler does seldom: crash, or wait for its assembler for long."""
    if name == "ends_the_process":
        os.abort()
    if name == "takes_long":
        subprocess.run(["sleep", "300"], check=True)
    raise AttributeError(f"there is no {name}")
