"""Failures to order: the n-th call of something fails.

Owns the orders. They come from a test in the same process, or, for a server, from the file that the environment
variable `DOUBLE_FAULTS` names: one line, `name` or `name code`; the next such call fails, and the file is gone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: cudaErrorInvalidValue: a call that was refused, and nothing worse.
REFUSED = 1
#: cudaErrorIllegalAddress: from then on every call fails.
LOST = 700


@dataclass
class _Order:
    countdown: int
    code: int


_ORDERS: dict[str, _Order] = {}


def order(name: str, nth: int = 1, code: int = REFUSED) -> None:
    """Let the n-th call of `name` from now on fail; a new order replaces the old one."""
    _ORDERS[name] = _Order(nth, code)


def clear() -> None:
    """Forget all orders."""
    _ORDERS.clear()


def due(name: str) -> int:
    """The code with which this call fails, or 0; counts it."""
    _take_file()
    found = _ORDERS.get(name)
    if found is None:
        return 0
    found.countdown -= 1
    if found.countdown:
        return 0
    del _ORDERS[name]
    return found.code


def _take_file() -> None:
    path = os.environ.get("DOUBLE_FAULTS")
    if path is None or not Path(path).exists():
        return
    name, *code = Path(path).read_text(encoding="utf-8").split()
    Path(path).unlink()
    order(name, code=int(code[0]) if code else REFUSED)
