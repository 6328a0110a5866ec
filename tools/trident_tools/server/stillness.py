"""Whether the engines of a server do anything while requests wait for them, and the server's readiness by that.

A core whose process hangs goes on being READY for Triton, and new requests would hang with it, or fail. Owns what was
last seen of each core, and the decision when its server is called not ready, and ready again. Never ends a server: one
that only pauses goes on with what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

#: Seconds without a step after which an engine stands still.
STILL_AFTER_S = 10.0
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class CoreFigures:
    """The figures that a core publishes about itself, at one moment.

    Args:
        num_steps: that its engine has made.
        num_open: requests without a last answer, also those whose text is finished and whose client does not read it.
        num_at_work: requests that wait for a step: those that run, those in the queue, and those that Triton could not
            hand over.
    """

    num_steps: int
    num_open: int
    num_at_work: int


@dataclass(frozen=True)
class _Seen:
    """A core when it last moved.

    Args:
        at: the time.
        num_steps: its steps then.
        num_open: the fewest open requests since then. More than these have come since the last step.
    """

    at: float
    num_steps: int
    num_open: int


class EngineProgress:
    """The steps of the cores of one server, as they were last seen."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def still_cores(self, now: float, figures: Mapping[str, CoreFigures]) -> list[str]:
        """Take note of the present; return the cores that stand still, sorted.

        Args:
            now: in seconds of any clock.
            figures: of every core, by its name.
        """
        self._seen = {core: self._look(now, self._seen.get(core), figure) for core, figure in figures.items()}
        return sorted(core for core, seen in self._seen.items() if now - seen.at >= STILL_AFTER_S)

    @staticmethod
    def _look(now: float, seen: _Seen | None, figure: CoreFigures) -> _Seen:
        if seen is None or figure.num_steps != seen.num_steps:
            return _Seen(now, figure.num_steps, figure.num_open)
        num_open = min(seen.num_open, figure.num_open)
        is_awaited = figure.num_at_work > 0 or figure.num_open > num_open
        return _Seen(seen.at if is_awaited else now, seen.num_steps, num_open)


class ServerStatus(Protocol):
    """Asks a server about itself; `TritonStatus` does."""

    def core_figures(self) -> Mapping[str, CoreFigures]:
        """Return the figures of every core that is served by its name; raise OSError where the server is silent."""
        ...


class Control(Protocol):
    """Sets a server's readiness; `ModelControl` does. Both methods raise OSError where that is impossible."""

    def withdraw_readiness(self) -> None:
        """Make the server call itself not ready."""
        ...

    def give_readiness_back(self) -> None:
        """Let the server call itself ready again."""
        ...


class StillnessWatch:
    """Withdraws the readiness of one server while a core of it stands still.

    Args:
        status: of the server.
        control: of its readiness.
        complain: is called with what went wrong, which must be shown in any case.
        say: is called with one line about what happens.
    """

    def __init__(
        self,
        status: ServerStatus,
        control: Control,
        *,
        complain: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._status = status
        self._control = control
        self._complain = complain
        self._say = say
        self._progress = EngineProgress()
        self._next_look = 0.0
        self._is_withdrawn: bool | None = False  # None: not known, as a call may have had its effect and no answer

    def look(self) -> None:
        """Look once a second whether the cores move; to be called a few times a second while the server serves."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        try:
            figures = self._status.core_figures()
        except OSError:  # whether the server lives is seen to elsewhere; what it did meanwhile is not known
            self._progress = EngineProgress()
            return
        still = self._progress.still_cores(now, figures)
        if bool(still) == self._is_withdrawn:
            return
        self._is_withdrawn = None
        try:
            if still:
                self._control.withdraw_readiness()
                self._complain(
                    f"{', '.join(still)}: no step of the engine for {STILL_AFTER_S:g} s while requests wait for it; "
                    "the server calls itself not ready until it goes on."
                )
            else:
                self._control.give_readiness_back()
                self._say("The engine goes on; the server calls itself ready again.")
        except OSError:
            return  # the next look settles it, whichever way that is then
        self._is_withdrawn = bool(still)
