"""Rows of tables, in the Triton language.

Owns the gathering of rows by number. Never checks a number: whoever uploads it knows the table.
"""

import triton
import triton.language as tl


@triton.jit
def gather(out, table, indices, WIDTH: tl.constexpr, OFFSET: tl.constexpr, CHUNK: tl.constexpr):
    """Write the rows `indices + OFFSET` of `table [rows, WIDTH]` to `out [T, WIDTH]`, in its type.

    Grid: (T, chunks of WIDTH, 1).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    ok = column < WIDTH
    source = (tl.load(indices + row) + OFFSET).to(tl.int64)
    found = tl.load(table + source * WIDTH + column, mask=ok)
    tl.store(out + row * WIDTH + column, found.to(out.dtype.element_ty), mask=ok)
