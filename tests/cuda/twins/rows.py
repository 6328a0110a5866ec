"""Twin of the gathering of rows."""

from __future__ import annotations

import numpy as np

from tests.cuda.calls import Call


def gather(call: Call) -> None:
    width, offset = int(call.constants["WIDTH"]), int(call.constants["OFFSET"])
    assert call.grid[1:] == (-(-width // call.constants["CHUNK"]), 1), call.grid
    indices = call.read("indices", (call.grid[0],)).astype(np.int64)
    call.store("out", call.gather("table", (indices + offset) * width, width))
