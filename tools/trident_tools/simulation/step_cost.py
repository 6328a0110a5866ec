"""The cost of a simulated step.

Owns the interface that the simulator uses, and the cost by a running engine's fitted step time. Never decides what a
step computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from trident_backend.sequences.step_time import StepTime
from trident_backend.sequences.steps import SchedulerOutput
from trident_ensemble.contract.errors import ConfigError


class StepCost(Protocol):
    """A model of the time that an engine takes for a step."""

    def seconds(self, output: SchedulerOutput) -> float:
        """Return the seconds that a step takes; above 0 for a step that computes something."""
        ...


@dataclass(frozen=True)
class FittedCost:
    """The cost by a fitted linear model, as a serving core learns it."""

    step_time: StepTime

    def seconds(self, output: SchedulerOutput) -> float:
        """Return the seconds that a step takes."""
        return self.step_time.seconds(output.size)


def parse_step_time(text: str) -> StepTime:
    """Read the coefficients of `StepTime` in their order, in seconds; the last ones may be left out.

    Raises:
        ConfigError: the text is not a list of such numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    names = [coefficient.name for coefficient in fields(StepTime)]
    if not 1 <= len(numbers) <= len(names):
        raise ConfigError(f"--step-time: {text!r} must be numbers of seconds: {','.join(names)}")
    numbers += [0.0] * (len(names) - len(numbers))
    return make_step_time(dict(zip(names, numbers, strict=True)), "--step-time")


def make_step_time(coefficients: Mapping[str, float], where: str) -> StepTime:
    """Make a step time from coefficients by name.

    Raises:
        ConfigError: a coefficient is below 0 or not finite, or all are 0; the message begins with `where`.
    """
    step_time = StepTime(**coefficients)
    numbers = coefficients.values()
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or not any(numbers):
        raise ConfigError(f"{where}: seconds must be at least 0, and not all of them 0; they are {step_time}")
    return step_time
