"""The stages of a rollout, as a state machine.

Owns what follows from what is seen: which weight the canary shall have, when a stage is over, and when everything goes
back. Never reads a clock, a file or a page. Weights are 0 and those of the stages, nothing else, and none is left
upwards while a gate is not met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from trident_ensemble.contract.errors import ConfigError
from trident_tools.rollouts.figures import SideFigures, Window
from trident_tools.rollouts.gates import GateLimits, Outcome, Verdict, judge, judge_servers


class Phase(str, Enum):
    """The phases of a rollout."""

    #: A weight was asked for, and not every gateway has shown it yet.
    SETTLING = "settling"
    WATCHING = "watching"
    #: The last stage has been held with every gate met.
    DONE = "done"
    #: The weight 0 was asked for, and not every gateway has shown it yet.
    UNDOING = "undoing"
    UNDONE = "undone"


@dataclass(frozen=True)
class Plan:
    """The stages to go through, and how each is judged.

    Args:
        stages: weights in percent, each above the one before; the first is below 100, so that there is something to
            compare with.
        hold_s: for which a stage is watched at least.
        max_hold_s: for which it is watched at most: one that cannot be judged by then is undone.
        min_requests: of the canary in a window, and of the stable side that it is compared with.
        patience_s: for which gateways may be unreadable, may show another weight, or may have no ready canary.
        limits: of the gates.

    Raises:
        ConfigError: names the option.
    """

    stages: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    hold_s: float = 600.0
    max_hold_s: float = 3600.0
    min_requests: int = 200
    patience_s: float = 15.0
    limits: GateLimits = field(default_factory=GateLimits)

    def __post_init__(self) -> None:
        """Refuse stages that lead nowhere."""
        if not self.stages or any(not 0 < weight <= 100 for weight in self.stages):
            raise ConfigError("--stages: must be weights above 0 and up to 100, such as 1,10,50,100")
        if any(after <= before for before, after in zip(self.stages, self.stages[1:], strict=False)):
            raise ConfigError("--stages: each weight must be above the one before it")
        if self.stages[0] >= 100:
            raise ConfigError("--stages: the first must be below 100, for the canary is compared with the stable side")
        if self.max_hold_s < self.hold_s:
            raise ConfigError(f"--max-hold {self.max_hold_s:g} s: is below --hold {self.hold_s:g} s")
        if self.min_requests < 1:
            raise ConfigError(f"--min-requests {self.min_requests}: is below 1")


@dataclass(frozen=True)
class Sight:
    """The view of all gateways at one moment.

    Args:
        elapsed_s: seconds since the last sight.
        weights: of the canary, as the gateways show them; None if not all of them can be read.
        has_ready_canary: every gateway has a server of the canary in rotation.
        counted: what was counted since the last sight in which all could be read.
    """

    elapsed_s: float
    weights: frozenset[float] | None
    has_ready_canary: bool = True
    counted: Window = field(default_factory=Window)


@dataclass(frozen=True)
class Progress:
    """The point that a rollout has come to.

    Args:
        phase: of the rollout.
        stage: index of the stage.
        weight: that the canary shall have.
        held_s: for which the stage was watched.
        waited_s: for which something has been awaited: that all gateways can be read, and show the weight.
        unready_s: for which there was no ready canary.
        window: what was counted in this stage.
        reference: the latest figures of the stable side with enough requests; None while there are none.
        verdicts: of the gates, when they were judged last.
        reason: why it was undone; "" if it was not.
    """

    phase: Phase
    stage: int
    weight: float
    held_s: float = 0.0
    waited_s: float = 0.0
    unready_s: float = 0.0
    window: Window = field(default_factory=Window)
    reference: SideFigures | None = None
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing follows any more."""
        return self.phase in (Phase.DONE, Phase.UNDONE)


def begin(plan: Plan, stage: int = 0, reference: SideFigures | None = None) -> Progress:
    """Return the beginning of a rollout, or of what is left of it from a stage on."""
    return Progress(Phase.SETTLING, stage, plan.stages[stage], reference=reference)


def undo(progress: Progress, reason: str) -> Progress:
    """Return what follows when the canary shall have nothing any more; a rollout that was undone stays so."""
    if progress.phase in (Phase.UNDOING, Phase.UNDONE):
        return progress
    return replace(progress, phase=Phase.UNDOING, weight=0.0, waited_s=0.0, reason=reason)


def advance(plan: Plan, progress: Progress, sight: Sight) -> Progress:
    """Return what follows from a sight."""
    if progress.is_over:
        return progress
    is_shown = sight.weights is not None and all(math.isclose(one, progress.weight) for one in sight.weights)
    waited_s = 0.0 if is_shown else progress.waited_s + sight.elapsed_s
    if progress.phase is Phase.UNDOING:
        is_over = is_shown or waited_s > plan.patience_s
        return replace(progress, phase=Phase.UNDONE if is_over else Phase.UNDOING, waited_s=waited_s)
    progress = replace(progress, waited_s=waited_s)
    if not is_shown:
        reason = "unreadable" if sight.weights is None else "weight_not_shown"
        return undo(progress, reason) if waited_s > plan.patience_s else progress
    if progress.phase is Phase.SETTLING:
        # What was counted until now belongs to another weight.
        return replace(progress, phase=Phase.WATCHING, held_s=0.0, unready_s=0.0, window=Window())
    return _watch(plan, progress, sight)


def _watch(plan: Plan, progress: Progress, sight: Sight) -> Progress:
    window = progress.window + sight.counted
    reference = window.stable if window.stable.requests >= plan.min_requests else progress.reference
    verdicts: tuple[Verdict, ...] = (judge_servers(window.canary),)
    if reference is not None:
        verdicts += judge(window.canary, reference, plan.limits)
    progress = replace(
        progress,
        held_s=progress.held_s + sight.elapsed_s,
        unready_s=0.0 if sight.has_ready_canary else progress.unready_s + sight.elapsed_s,
        window=window,
        reference=reference,
        verdicts=verdicts,
    )
    broken = next((verdict for verdict in verdicts if verdict.outcome is Outcome.BROKEN), None)
    if broken is not None:
        return undo(progress, broken.gate)
    if progress.unready_s > plan.patience_s:
        return undo(progress, "not_ready")
    has_enough = reference is not None and window.canary.requests >= plan.min_requests
    is_met = all(verdict.outcome is Outcome.MET for verdict in verdicts) and sight.has_ready_canary
    if progress.held_s >= plan.hold_s and has_enough and is_met:
        return _next_stage(plan, progress)
    if progress.held_s >= plan.max_hold_s:
        return undo(progress, "unclear" if has_enough else "too_few_requests")
    return progress


def _next_stage(plan: Plan, progress: Progress) -> Progress:
    stage = progress.stage + 1
    if stage == len(plan.stages):
        return replace(progress, phase=Phase.DONE)
    return replace(begin(plan, stage, progress.reference), verdicts=progress.verdicts)
