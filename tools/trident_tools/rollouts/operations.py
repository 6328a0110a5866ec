"""What the actions of `trident rollout` do.

Owns their order: the lock, the trial, the state, the stages. Never reads an option and never prints.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from trident_ensemble.contract.errors import ConfigError, ServerError, TridentError
from trident_tools.rollouts.door import Door
from trident_tools.rollouts.machine import OPEN_PHASES, Phase, Plan, Progress, begin
from trident_tools.rollouts.machine import undo as taken_back
from trident_tools.rollouts.routes_file import RoutesFile
from trident_tools.rollouts.runner import Runner, Surroundings
from trident_tools.rollouts.state_file import RolloutState, StateFile
from trident_tools.rollouts.trial import TrialError, compare_digests, digests, try_model

TRIAL = "trial"
PROMOTED = "promoted"
_STOP_LIMIT_S = 60.0
_POLL_S = 0.2
#: Opens a way to one server; what is called raises where the command was asked to stop.
Opener = Callable[[Callable[[], None]], AbstractContextManager[Door]]


class StoppedError(Exception):
    """The command was asked to stop before anything was in force."""


@dataclass(frozen=True)
class Trial:
    """The trial before the first caller.

    Args:
        canary: ways to the canary's servers, each alone.
        stable: a way to the stable side, to compare digests; None where there is none.
        allows_other_digest: a difference is said and nothing more.
    """

    canary: tuple[Opener, ...]
    stable: Opener | None
    allows_other_digest: bool

    def run(self, say: Callable[[str], None], check: Callable[[], None]) -> tuple[str, ...]:
        """Try all servers of the canary; return the names of their models.

        Raises:
            TrialError: one of them must not get callers.
            ServerError: the stable side does not answer.
        """
        found: dict[str, str] = {}
        for opener in self.canary:
            with _ready(opener, check) as door:
                models = digests(door.client)
                if found and models != found:
                    raise TrialError(f"{door.name}: its models are not those of the canary's other servers")
                found = models
                for name in models:
                    kinds = try_model(door.client, name, check)
                    say(f"{door.name}: {name} answers {', '.join(kinds)}")
        self._compare(found, say, check)
        return tuple(found)

    def _compare(self, canary: dict[str, str], say: Callable[[str], None], check: Callable[[], None]) -> None:
        if self.stable is None:
            differences = ["the digests cannot be compared, for no server of the stable side is known: --compare-with"]
        else:
            with self.stable(check) as door:
                differences = compare_digests(canary, digests(door.client))
        for difference in differences:
            say(difference)
        if differences and not self.allows_other_digest:
            raise TrialError(f"{'; '.join(differences)}. If that is meant: --allow-other-digest", "other_digest")


def start(plan: Plan, around: Surroundings, trial: Trial, undone: dict[str, int]) -> RolloutState:
    """Try the canary and go through all stages; return the end.

    Raises:
        TridentError: it could not begin, or not end.
    """
    # Whoever has callers keeps its state.
    around.routing.check_free()
    _check_readable(around)
    state = RolloutState(
        around.routing.target, TRIAL, 0, plan.stages, 0.0, started_s=time.time(), seen_s=time.time(), undone=undone
    )
    around.state.write(state)
    around.metrics.show(0, 0.0)

    def check() -> None:
        if around.num_signals():
            raise StoppedError

    try:
        models = trial.run(around.say, check)
    except TrialError as error:
        return _refused(around, state, error.cause, str(error))
    except StoppedError:
        return _refused(around, state, "interrupted", "interrupted before the first caller was moved")
    around.gateways.count_models(models)
    _check_readable(around)
    around.routing.prepare()
    return _run(plan, around, replace(state, models=models), begin(plan))


def resume(plan: Plan, around: Surroundings, state: RolloutState) -> RolloutState:
    """Go on with a rollout whose command has died, with its stage or with giving everybody back; return the end.

    Gateways that cannot be read are no error here: the canary has callers, who are given back when they stay so.

    Raises:
        ServerError: it could not end.
    """
    around.gateways.count_models(state.models)
    progress = begin(plan, state.stage, state.reference)
    return _run(plan, around, state, taken_back(progress, state.reason) if state.phase == Phase.UNDOING else progress)


def _run(plan: Plan, around: Surroundings, state: RolloutState, progress: Progress) -> RolloutState:
    runner = Runner(plan, around, state)
    try:
        return runner.run(progress)
    except TridentError:
        raise
    except Exception:
        # Nobody watches any more, so nobody may be left with the canary.
        runner.abandon(progress)
        raise


def resumable(state: RolloutState | None, target: tuple[str, ...]) -> RolloutState:
    """Return the state of a rollout whose command has died.

    Raises:
        ConfigError: there is none, or it is that of another canary.
    """
    if state is None or state.phase not in OPEN_PHASES:
        raise ConfigError("--resume: there is no rollout that was broken off; start one without --resume")
    if state.target != target:
        raise ConfigError(f"--resume: the rollout that was broken off is to {', '.join(state.target)}")
    return state


def undo(state_file: StateFile, take_back: Callable[[], float]) -> str:
    """Take all callers from the canary; return what has happened.

    A command that runs a rollout is asked to do it, so that there is one writer.

    Args:
        state_file: of the rollout.
        take_back: takes them where no command runs; returns the weight that the canary had.

    Raises:
        TridentError: it could not be done.
    """
    if (pid := state_file.writer()) is not None:
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError as error:
            raise ServerError(f"process {pid} runs the rollout and cannot be told: {error.strerror}") from None
        until = time.monotonic() + _STOP_LIMIT_S
        while state_file.writer() is not None:
            if time.monotonic() > until:
                raise ServerError(f"process {pid} was told to undo the rollout, and has not ended in {_STOP_LIMIT_S} s")
            time.sleep(_POLL_S)
        return f"process {pid}, which ran the rollout, has undone it"
    with state_file.locked():
        weight = take_back()
        state = state_file.read()
        if state is not None:
            undone = dict(state.undone)
            # One that is done ends well so where the stable side has the canary's version by now.
            if weight and state.phase != Phase.DONE:
                undone["asked"] = undone.get("asked", 0) + 1
            state_file.write(replace(state, phase=Phase.UNDONE.value, weight=0.0, reason="asked", undone=undone))
    return f"the canary had {weight:g} % of the callers, and has none" if weight else "the canary has no callers"


def finish(state_file: StateFile, file: RoutesFile) -> str:
    """Make the canary the stable side; return what has happened.

    Raises:
        TridentError: it is not one that has all callers and has met every gate.
    """
    with state_file.locked():
        state = state_file.read()
        if state is None or state.phase != Phase.DONE or state.weight != 100:
            raise ConfigError("there is no rollout that has come to 100 %; `trident rollout status` says how far it is")
        routes = file.read()
        file.promote(() if routes.canary is None else routes.canary.servers)
        state_file.write(replace(state, phase=PROMOTED, weight=0.0))
    return f"the stable side is {', '.join(state.target)}; there is no canary"


def _check_readable(around: Surroundings) -> None:
    """Read all gateways once, so that the first window has a beginning.

    Raises:
        ServerError: one of them cannot be read.
    """
    problems = around.gateways.look().problems
    if problems:
        raise ServerError(f"a gateway cannot be read: {'; '.join(problems)}")


def _refused(around: Surroundings, state: RolloutState, reason: str, text: str) -> RolloutState:
    undone = {**state.undone, reason: state.undone.get(reason, 0) + 1}
    state = replace(state, phase=Phase.UNDONE.value, reason=reason, text=text, undone=undone)
    around.state.write(state)
    around.metrics.undone.update({reason: 1})
    around.metrics.show(0, 0.0)
    return state


@contextmanager
def _ready(opener: Opener, check: Callable[[], None]) -> Iterator[Door]:
    """Open a way to a server of the canary.

    Raises:
        TrialError: it does not become ready.
    """
    with ExitStack() as stack:
        try:
            door = stack.enter_context(opener(check))
        except ServerError as error:
            raise TrialError(str(error), "not_ready") from None
        yield door
