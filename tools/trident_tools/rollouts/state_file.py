"""The state of a rollout beside what it changes, so that it outlives the command.

Owns the file, and the lock by which there is one writer. Never decides anything.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trident_ensemble.contract.errors import ConfigError, ServerError
from trident_tools.load.output_files import replace_file
from trident_tools.rollouts.figures import Histogram, SideFigures

FORMAT = 1


@dataclass(frozen=True)
class RolloutState:
    """The state of the last rollout.

    Args:
        target: what it moves callers to, as its writer names it: URLs of servers, or an HTTPRoute and its backends.
        phase: of the rollout: `trial`, or one of the machine's; `promoted` once the canary is the stable side.
        stage: index of the stage.
        stages: weights of all.
        weight: that was written last.
        models: names of the canary's models, whose requests count.
        reason: why it was undone; "" if it was not.
        text: what was found, for people.
        started_s: when it began, in seconds since 1970.
        seen_s: when the gateways were looked at last.
        reference: what the canary is compared with; None while there is nothing.
        undone: reason -> rollouts that were undone, all those of this file.
    """

    target: tuple[str, ...]
    phase: str
    stage: int
    stages: tuple[float, ...]
    weight: float
    models: tuple[str, ...] = ()
    reason: str = ""
    text: str = ""
    started_s: float = 0.0
    seen_s: float = 0.0
    reference: SideFigures | None = None
    undone: Mapping[str, int] = field(default_factory=dict)


class StateFile:
    """The file of the state, and its lock.

    Args:
        path: of the file; the lock is a file beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(f"{path.name}.lock")

    def read(self) -> RolloutState | None:
        """Return the state; None if there has been no rollout.

        Raises:
            ConfigError: the file cannot be read or understood.
        """
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            if raw.pop("format") != FORMAT:
                raise ConfigError(f"the state {self._path}: has another format; finish its rollout with its version")
            reference = raw.pop("reference")
            return RolloutState(
                **{
                    **raw,
                    "target": tuple(raw["target"]),
                    "stages": tuple(raw["stages"]),
                    "models": tuple(raw["models"]),
                    "reference": None if reference is None else _figures(reference),
                }
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"the state {self._path}: cannot be understood: {error}") from None

    def write(self, state: RolloutState) -> None:
        """Replace the file.

        Raises:
            ServerError: it cannot be written.
        """
        content = {"format": FORMAT, **asdict(state)}
        if state.reference is not None:
            for name in _HISTOGRAMS:
                histogram = getattr(state.reference, name)
                pairs = [["inf" if math.isinf(bound) else bound, count] for bound, count in histogram.counts.items()]
                content["reference"][name] = {"counts": pairs, "total": histogram.total}
        try:
            replace_file(self._path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise ServerError(f"the state {self._path}: cannot be written: {error.strerror or error}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one writer while the block runs.

        Raises:
            ServerError: another process is.
        """
        try:
            lock = self._lock_path.open("a+", encoding="ascii")
        except OSError as error:
            raise ServerError(f"the state {self._path}: cannot be locked: {error.strerror or error}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerError(
                    f"{self._path}: a rollout is running, process {self.writer()}; `trident rollout undo` ends it"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)

    def writer(self) -> int | None:
        """Return the id of the process that is the writer now; None if there is none."""
        try:
            with self._lock_path.open("r", encoding="ascii") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read() or "0") or None
        except (OSError, ValueError):
            pass
        return None


_HISTOGRAMS = tuple(one.name for one in fields(SideFigures) if isinstance(one.default, Histogram))


def _figures(raw: Mapping[str, Any]) -> SideFigures:
    histograms = {
        name: Histogram({float(bound): count for bound, count in raw[name]["counts"]}, raw[name]["total"])
        for name in _HISTOGRAMS
    }
    return SideFigures(**{**raw, **histograms})
