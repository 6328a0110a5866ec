"""Calls of CUDA as cuda-python makes them: a status first, then results.

Owns the conversion of faults into status codes, and calls that a test has ordered to fail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from tests.tensorrt.double import faults
from tests.tensorrt.double.gpu import GPUS, Fault

#: Illegal address, misaligned address, launch failure: nothing works after them.
_LOSING = frozenset({700, 716, 719})
Function = Callable[..., tuple[Any, ...]]


def answering(codes: type[IntEnum], failed: tuple[None, ...] = (None,)) -> Callable[[Function], Function]:
    """Return the decorator for functions of an API with these codes; `failed` are the results where one fails."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                GPUS.check()
                if code := faults.due(function.__name__):
                    fault = Fault(code, f"{function.__name__} was told to fail")
                    if code in _LOSING:
                        GPUS.lose(fault)
                    raise fault
                return (codes(0), *function(*arguments))
            except Fault as fault:
                return (codes(fault.code), *failed)

        return call

    return decorate
