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

#: Of the gates, those that are judged while callers warm up: what they count does not wait for the end of an answer.
_EARLY_GATES = ("errors", "itl")


class Phase(str, Enum):
    """The phases of a rollout."""

    #: A weight was asked for, and not every gateway has shown it yet.
    SETTLING = "settling"
    #: The callers have moved, and only the short ones of their answers have ended.
    WARMING = "warming"
    WATCHING = "watching"
    #: The last stage has been held with every gate met.
    DONE = "done"
    #: The weight 0 was asked for, and not every gateway has shown it yet.
    UNDOING = "undoing"
    UNDONE = "undone"


#: Phases in which a command that has died leaves something to do.
OPEN_PHASES = (Phase.SETTLING, Phase.WARMING, Phase.WATCHING, Phase.UNDOING)


@dataclass(frozen=True)
class Plan:
    """The stages to go through, and how each is judged.

    Args:
        stages: weights in percent, each above the one before; the first is below 100, so that there is something to
            compare with.
        hold_s: for which a stage is watched at least.
        max_hold_s: for which it is watched at most: one that cannot be judged by then is undone.
        warm_up_s: before that, in which counts are dropped after they were judged for errors alone. Requests count when
            they end, so that a side with new callers shows its short answers first; it should be longer than nearly
            all answers take.
        min_requests: of the canary in a window, and of the stable side that it is compared with.
        patience_s: for which gateways may be unreadable, may show another weight, or may have no ready canary.
        limits: of the gates.

    Raises:
        ConfigError: names the option.
    """

    stages: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    hold_s: float = 600.0
    max_hold_s: float = 3600.0
    warm_up_s: float = 60.0
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
        held_s: for which the stage has warmed up, or was watched.
        waited_s: for which something has been awaited: that all gateways can be read, and show the weight.
        unready_s: for which there was no ready canary.
        window: what was counted in that time.
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
    progress = replace(progress, waited_s=waited_s)
    if progress.phase is Phase.UNDOING:
        return replace(progress, phase=Phase.UNDONE) if is_shown or waited_s > plan.patience_s else progress
    if not is_shown:
        reason = "unreadable" if sight.weights is None else "weight_not_shown"
        return undo(progress, reason) if waited_s > plan.patience_s else progress
    if progress.phase is Phase.SETTLING:
        # What was counted until now belongs to another weight.
        return _begin_window(progress, Phase.WARMING if plan.warm_up_s else Phase.WATCHING)
    return _look(plan, progress, sight)


def _look(plan: Plan, progress: Progress, sight: Sight) -> Progress:
    """Return what follows from what was counted since the last sight with the weight in force."""
    progress = replace(
        progress,
        held_s=progress.held_s + sight.elapsed_s,
        unready_s=0.0 if sight.has_ready_canary else progress.unready_s + sight.elapsed_s,
        window=progress.window + sight.counted,
    )
    is_warming = progress.phase is Phase.WARMING
    progress = _judge_early(plan, progress) if is_warming else _judge(plan, progress)
    broken = next((verdict for verdict in progress.verdicts if verdict.outcome is Outcome.BROKEN), None)
    if broken is not None:
        return undo(progress, broken.gate)
    if progress.unready_s > plan.patience_s:
        return undo(progress, "not_ready")
    if is_warming:
        return _begin_window(progress, Phase.WATCHING) if progress.held_s >= plan.warm_up_s else progress
    return _go_on(plan, progress, is_ready=sight.has_ready_canary)


def _begin_window(progress: Progress, phase: Phase) -> Progress:
    return replace(progress, phase=phase, held_s=0.0, unready_s=0.0, window=Window())


def _judge_early(plan: Plan, progress: Progress) -> Progress:
    """Judge what needs no answers that have ended.

    A failure ends at once, a good answer later. So the requests are divided as the callers are by now; what the stable
    side still answers began before.
    """
    window, share = progress.window, progress.weight / 100
    total = window.stable.requests + window.canary.requests
    canary = replace(window.canary, requests=max(window.canary.requests, share * total))
    stable = replace(window.stable, requests=max(window.stable.errors, total - canary.requests))
    if stable.requests < plan.min_requests and progress.reference is not None:
        stable = progress.reference
    verdicts = judge(canary, stable, plan.limits)
    early = tuple(verdict for verdict in verdicts if verdict.gate in _EARLY_GATES)
    return replace(progress, verdicts=(judge_servers(window.canary), *early))


def _judge(plan: Plan, progress: Progress) -> Progress:
    window, reference = progress.window, progress.reference
    # With all callers moved, what ends on the stable side is the longest of its answers alone.
    if progress.weight < 100 and window.stable.requests >= plan.min_requests:
        reference = window.stable
    verdicts: tuple[Verdict, ...] = (judge_servers(window.canary),)
    if reference is not None:
        verdicts += judge(window.canary, reference, plan.limits)
    return replace(progress, reference=reference, verdicts=verdicts)


def _go_on(plan: Plan, progress: Progress, *, is_ready: bool) -> Progress:
    """Return what follows from a window in which nothing is broken."""
    has_enough = progress.reference is not None and progress.window.canary.requests >= plan.min_requests
    is_met = all(verdict.outcome is Outcome.MET for verdict in progress.verdicts) and is_ready
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
