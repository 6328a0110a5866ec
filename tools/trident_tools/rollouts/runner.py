"""The loop of a rollout: look, decide, put in force.

Owns the order of these, and that what was decided is in force and in the state before anything else happens. Never
judges: the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from trident_ensemble.contract.errors import ServerError, TridentError
from trident_tools.rollouts.gateways import Gateways
from trident_tools.rollouts.machine import Phase, Plan, Progress, Sight, advance, undo
from trident_tools.rollouts.rollout_metrics import RolloutMetrics
from trident_tools.rollouts.routes_file import ForeignChangeError
from trident_tools.rollouts.routing import Routing
from trident_tools.rollouts.state_file import RolloutState, StateFile

#: How often the state says that somebody watches, and the user reads a line.
_REPORT_EVERY_S = 30.0


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of a rollout: everything that it works with.

    Args:
        routing: moves callers.
        gateways: are watched.
        state: outlives the command.
        metrics: of the command.
        say: tells the user what happens.
        num_signals: returns how often the command was asked to stop.
        poll_s: seconds between two looks.
        monotonic: the time in seconds.
        sleep: waits.
    """

    routing: Routing
    gateways: Gateways
    state: StateFile
    metrics: RolloutMetrics
    say: Callable[[str], None]
    num_signals: Callable[[], int]
    poll_s: float = 1.0
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Runner:
    """One rollout, from its first weight to its end.

    Args:
        plan: what is to be done.
        around: what it works with.
        state: as it is in the file. Its weight may not be the one in force, if its command has died.
    """

    def __init__(self, plan: Plan, around: Surroundings, state: RolloutState) -> None:
        self._plan = plan
        self._around = around
        self._state = state
        self._written = state.weight
        self._is_sure = False
        self._is_kept = True
        self._reported_at = -_REPORT_EVERY_S
        self._complaints: dict[str, str] = {}

    def run(self, progress: Progress) -> RolloutState:
        """Go on until the rollout is done or undone; return the state at its end.

        Raises:
            ServerError: it was asked twice to stop while the canary could not be given the weight 0.
        """
        around = self._around
        if progress.phase is Phase.UNDOING:
            around.say(f"Still to be undone: {progress.reason}. All callers go back to the stable side.")
        else:
            self._say_stage(progress)
        looked_at, reported = around.monotonic(), progress
        while True:
            # Before it is in force: a command that dies in between is resumed with what it wanted.
            self._keep(progress)
            progress = self._put_in_force(progress)
            self._report(reported, progress, looked_at)
            self._keep(progress)
            if progress.is_over:
                return self._end(progress)
            reported = progress
            around.sleep(around.poll_s)
            look = around.gateways.look()
            self._complain("gateways", "; ".join(look.problems))
            now = around.monotonic()
            sight = Sight(now - looked_at, around.routing.shown(look.weights), look.has_ready_canary, look.counted)
            looked_at = now
            # What is not in force yet cannot be seen.
            if self._is_in_force(progress):
                progress = advance(self._plan, progress, sight)
            if around.num_signals():
                progress = undo(progress, "interrupted")
                if around.num_signals() > 1:
                    progress = self._give_up(progress)

    def abandon(self, progress: Progress) -> None:
        """Try once to take all callers back, after a failure that nobody has foreseen."""
        progress = replace(undo(progress, "failed"), phase=Phase.UNDONE)
        if self._is_in_force(self._put_in_force(progress)):
            self._keep(progress)

    def _is_in_force(self, progress: Progress) -> bool:
        return self._is_sure and progress.weight == self._written

    def _end(self, progress: Progress) -> RolloutState:
        """Return the last state once it is in the file, or cannot be brought there within the patience."""
        around = self._around
        until = around.monotonic() + self._plan.patience_s
        while not self._is_kept and around.monotonic() < until and not around.num_signals():
            around.sleep(around.poll_s)
            self._keep(progress)
        return self._state

    def _put_in_force(self, progress: Progress) -> Progress:
        """Write the weight if it is new, and once in any case; return what follows where that fails."""
        if self._is_in_force(progress):
            return progress
        try:
            self._around.routing.set_weight(progress.weight, self._written)
        except ForeignChangeError as error:
            self._complain("weight", str(error))
            # Whoever has changed it decides from here on.
            return replace(undo(progress, "changed_by_others"), phase=Phase.UNDONE)
        except TridentError as error:
            self._complain("weight", str(error))
            if progress.phase is not Phase.UNDOING:
                return self._put_in_force(undo(progress, "not_written"))
            return progress
        self._written, self._is_sure = progress.weight, True
        return progress

    def _keep(self, progress: Progress) -> None:
        """Write the state and the metrics where they have changed."""
        around, state = self._around, self._state
        now_s = time.time()
        undone = dict(state.undone)
        if progress.phase is Phase.UNDONE and state.phase != Phase.UNDONE:
            undone[progress.reason] = undone.get(progress.reason, 0) + 1
        new = replace(
            state,
            phase=progress.phase.value,
            stage=progress.stage,
            weight=self._written,
            reason=progress.reason,
            text="; ".join(f"{verdict.gate} {verdict.outcome.value}: {verdict.text}" for verdict in progress.verdicts),
            reference=progress.reference,
            undone=undone,
        )
        is_new = (new.phase, new.stage, new.weight) != (state.phase, state.stage, state.weight)
        if not is_new and self._is_kept and now_s - state.seen_s < _REPORT_EVERY_S:
            return
        self._state = replace(new, seen_s=now_s)
        around.metrics.undone.clear()
        around.metrics.undone.update(undone)
        try:
            around.state.write(self._state)
            is_undone = progress.phase in (Phase.UNDOING, Phase.UNDONE)
            around.metrics.show(0 if is_undone else progress.stage + 1, self._written)
            self._is_kept = True
        except ServerError as error:
            # What is in force does not depend on it.
            self._is_kept = False
            self._complain("state", str(error))

    def _report(self, before: Progress, after: Progress, now: float) -> None:
        if after.phase is Phase.UNDOING and before.phase is not Phase.UNDOING:
            self._around.say(f"Undone: {after.reason}. All callers go back to the stable side.")
            self._say_verdicts(after)
        elif after.phase is Phase.UNDONE and after.waited_s:
            self._around.say("Not every gateway has shown that the canary has no callers any more: look at them")
        elif after.phase is Phase.DONE or after.stage != before.stage:
            self._around.say(f"Stage {before.stage + 1} held")
            self._say_verdicts(after)
            if after.phase is not Phase.DONE:
                self._say_stage(after)
        elif after.phase is Phase.WARMING and now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            self._around.say(f"  {after.held_s:.0f} of {self._plan.warm_up_s:.0f} s of the warm-up")
        elif after.phase is Phase.WATCHING and now - self._reported_at >= _REPORT_EVERY_S:
            self._reported_at = now
            window = after.window
            self._around.say(
                f"  {after.held_s:.0f} of {self._plan.hold_s:.0f} s, {window.canary.requests:.0f} of "
                f"{self._plan.min_requests} requests of the canary, {window.stable.requests:.0f} of the stable side"
            )

    def _say_stage(self, progress: Progress) -> None:
        number = len(self._plan.stages)
        self._around.say(f"Stage {progress.stage + 1} of {number}: {progress.weight:g} % of the callers")

    def _say_verdicts(self, progress: Progress) -> None:
        for verdict in progress.verdicts:
            self._around.say(f"  {verdict.gate} {verdict.outcome.value}: {verdict.text}")

    def _complain(self, about: str, text: str) -> None:
        """Tell the user of a problem, once for as long as it stays the same."""
        if text and text != self._complaints.get(about):
            self._around.say(text)
        self._complaints[about] = text

    def _give_up(self, progress: Progress) -> Progress:
        """Return the end, without waiting for gateways to show it.

        Raises:
            ServerError: the canary still has callers.
        """
        progress = self._put_in_force(progress)
        if not self._is_in_force(progress):
            raise ServerError(
                f"the canary still has {self._written:g} % of the callers, as its weight cannot be written; "
                "`trident rollout undo` tries again"
            )
        return replace(progress, phase=Phase.UNDONE)
