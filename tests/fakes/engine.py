"""A mock engine that stops where a test says so.

Owns when a step begins. Never what it computes: that is the mock engine's.
"""

from __future__ import annotations

import threading

from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import MockEngine
from trident_backend.engine.protocol import EngineSpec


class HeldEngine(MockEngine):
    """Computes as many steps as it may, and waits in the next one until it may go on.

    So a test can do something in the middle of an answer, however slow the machine is. It has to let the engine go on
    before the end: the loop waits for its step.
    """

    def __init__(self, spec: EngineSpec, num_steps: int = 0, step_seconds: float = 0.0) -> None:
        super().__init__(spec, step_seconds)
        #: Steps that have been computed.
        self.num_steps = 0
        self._permits = threading.Semaphore(num_steps)
        self._is_held = True

    def let(self, num_steps: int) -> None:
        """Allow so many steps more."""
        self._permits.release(num_steps)

    def release(self) -> None:
        """Allow all steps."""
        self._is_held = False
        self._permits.release()

    def collect(self) -> HostLogits:
        if self._is_held:
            assert self._permits.acquire(timeout=60), "the test has forgotten to let it go on"
        self.num_steps += 1
        return super().collect()
