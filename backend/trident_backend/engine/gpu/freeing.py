"""What is freed where a constructor or a load fails.

Owns that the first error is the one that is raised. Never decides what is freed in which order: callers say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from trident_ensemble.contract.errors import EngineError


@contextmanager
def freed_on_failure() -> Iterator[ExitStack]:
    """Give a stack that is closed if the block fails, and left to the caller otherwise.

    A GPU that is lost fails every call after the first; what such a GPU does not take back is freed with the process.
    """
    stack = ExitStack()
    try:
        yield stack
    except BaseException:
        with suppress(EngineError):
            stack.close()
        raise
