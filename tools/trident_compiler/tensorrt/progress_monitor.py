"""TensorRT's reports of a build, which is watched and can be given up.

Owns how nested phases become one number. Never draws anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Phase:
    """A phase that is going on: its part of the whole, 0 to 1, and its steps."""

    begin: float
    width: float
    num_steps: int
    num_done: int = 0

    def share(self) -> float:
        return self.begin + self.width * min(self.num_done / max(1, self.num_steps), 1.0)


class NestedShares:
    """The share of a build that is done: each step of a phase is an equal part of it, and a phase within is one step.

    It never goes back, whatever phases do.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._reached = 0.0

    def begin(self, name: str, parent: str | None, num_steps: int) -> None:
        """Begin a phase, within another's present step or by itself."""
        outer = self._phases.get(parent or "")
        if outer is None:
            self._phases[name] = _Phase(0.0, 1.0, num_steps)
        else:
            self._phases[name] = _Phase(outer.share(), outer.width / max(1, outer.num_steps), num_steps)

    def step(self, name: str, num_done: int) -> float:
        """Record that `num_done` steps of a phase are done; return the share of the whole."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.num_done = num_done
            self._reached = max(self._reached, phase.share())
        return self._reached

    def finish(self, name: str) -> float:
        """End a phase, after all its steps or before; return the share of the whole."""
        phase = self._phases.pop(name, None)
        if phase is not None:
            self._reached = max(self._reached, min(phase.begin + phase.width, 1.0))
        return self._reached


def monitor(trt: Any, on_share: Callable[[float], None]) -> Any:
    """Return an `IProgressMonitor` that reports to `on_share`; after `give_up()` the build ends as soon as it can.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        on_share: called from the building thread with 0 to 1.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """A monitor that TensorRT may report to from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._given_up = threading.Event()
            self._lock = threading.Lock()
            self._shares = NestedShares()

        def give_up(self) -> None:
            self._given_up.set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._shares.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._report(self._shares.step(phase_name, step + 1))
            return not self._given_up.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._report(self._shares.finish(phase_name))

        def _report(self, share: float) -> None:
            # A build that is given up ends all its phases.
            if not self._given_up.is_set():
                on_share(share)

    return Monitor()
