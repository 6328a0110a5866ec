"""Twins of our kernels: `twins.<module>.<function>` computes in numpy, on the whole grid at once, what the kernel
`<module>.<function>` of `trident_compiler.cuda.kernels` computes; each is held against its source in the interpreter.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

import numpy as np

from tests.cuda.calls import Call


def run(function: str, call: Call) -> None:
    """Run the twin of `module.function`; what padding makes of junk is nothing to warn of."""
    with np.errstate(all="ignore"):
        find(function)(call)


@cache
def find(function: str) -> Callable[[Call], None]:
    """Return the twin of `module.function`."""
    module, _, name = function.partition(".")
    found: Callable[[Call], None] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
