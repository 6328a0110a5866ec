"""The loop: what was decided is in force before anything else happens, also where writing fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.fakes.kube_api import FakeKubeApi
from tests.tools.rollouts.sides import side
from trident_ensemble.contract.errors import ServerError
from trident_tools.rollouts.figures import Window
from trident_tools.rollouts.gateways import Look
from trident_tools.rollouts.http_route import HttpRoute
from trident_tools.rollouts.kubernetes import KubeApi, kube_address
from trident_tools.rollouts.machine import Plan, begin, undo
from trident_tools.rollouts.operations import resumable, resume
from trident_tools.rollouts.rollout_metrics import REASONS, RolloutMetrics
from trident_tools.rollouts.routes_file import ForeignChangeError
from trident_tools.rollouts.routing import RouteRouting, Routing
from trident_tools.rollouts.runner import Runner, Surroundings
from trident_tools.rollouts.state_file import RolloutState, StateFile

PLAN = Plan(stages=(10.0, 100.0), hold_s=5.0, max_hold_s=20.0, warm_up_s=2.0, min_requests=100, patience_s=5.0)


@dataclass
class Stage:
    """A routing and gateways of which nothing is real, and the time."""

    folder: Path
    now: float = 0.0
    weights: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    num_signals: int = 0
    #: Called before a weight is written.
    on_write: Callable[[float], None] = lambda _: None
    #: What the canary does.
    counted: Window = field(default_factory=lambda: Window(side(100), side(50)))
    target: tuple[str, ...] = ("http://b:1",)

    def check_free(self) -> None:
        """Find nothing."""

    def prepare(self) -> None:
        """Do nothing."""

    def set_weight(self, weight: float, before: float) -> None:
        """Write a weight."""
        assert before == (self.weights[-1] if self.weights else 0.0)
        self.on_write(weight)
        self.weights.append(weight)

    def shown(self, weights: frozenset[float] | None) -> frozenset[float] | None:
        """Return what was written."""
        return weights

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def look(self) -> Look:
        """Return what the gateways show."""
        return Look(frozenset({self.weights[-1] if self.weights else 0.0}), has_ready_canary=True, counted=self.counted)

    def run(
        self, routing: Routing | None = None, state: RolloutState | None = None
    ) -> tuple[RolloutState, RolloutState]:
        """Run a rollout; return its state and that which is in the file."""
        file = StateFile(self.folder / "state")
        before = state or RolloutState(self.target, "trial", 0, PLAN.stages, 0.0)
        around = Surroundings(
            routing or self, self, file, RolloutMetrics(before.undone, self.folder / "metrics.prom"),  # type: ignore[arg-type]
            self.said.append, lambda: self.num_signals, monotonic=lambda: self.now, sleep=self.sleep,
        )  # fmt: skip
        progress = begin(PLAN, before.stage, before.reference)
        end = Runner(PLAN, around, before).run(undo(progress, before.reason) if before.reason else progress)
        after = file.read()
        assert after is not None
        return end, after


def test_runner_writes_each_stage_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    end, state = stage.run()
    assert (stage.weights, end.phase, state.phase, state.weight) == ([10.0, 100.0], "done", "done", 100.0)
    assert state.reference is not None


def test_runner_takes_everything_back_and_counts_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, counted=Window(side(1000), side(100, errors=50)))
    _, state = stage.run(
        state=RolloutState(("http://b:1",), "trial", 0, PLAN.stages, 0.0, undone={"errors": 1, "itl": 1})
    )
    assert (stage.weights, state.reason, state.undone) == ([10.0, 0.0], "errors", {"errors": 2, "itl": 1})
    page = (tmp_path / "metrics.prom").read_text(encoding="utf-8")
    assert 'trident_rollout_undone_total{reason="errors"} 2.0' in page
    assert "trident_rollout_stage 0.0" in page
    # Each reason has a series from the beginning, so that its increase can be seen.
    assert all(f'trident_rollout_undone_total{{reason="{reason}"}}' in page for reason in REASONS)


def test_runner_undoes_what_it_cannot_write(tmp_path: Path) -> None:
    def fail(weight: float) -> None:
        if weight == 100.0:
            raise ServerError("no space left")

    stage = Stage(tmp_path, on_write=fail)
    _, state = stage.run()
    assert (stage.weights, state.reason, state.weight) == ([10.0, 0.0], "not_written", 0.0)
    assert "no space left" in stage.said


def test_runner_tries_to_take_back_until_it_can(tmp_path: Path) -> None:
    failures = iter(range(30))

    def fail(weight: float) -> None:
        if weight == 0.0 and next(failures, None) is not None:
            raise ServerError("no space left")

    stage = Stage(tmp_path, on_write=fail, counted=Window(side(1000), side(100, errors=50)))
    end, state = stage.run()
    assert (stage.weights, end.phase, state.phase) == ([10.0, 0.0], "undone", "undone")
    assert stage.now > 30
    assert stage.said.count("no space left") == 1


def test_runner_that_is_asked_twice_gives_up_and_says_what_is_left(tmp_path: Path) -> None:
    def fail(weight: float) -> None:
        if weight == 0.0:
            stage.num_signals += 1
            raise ServerError("no space left")
        stage.num_signals = 1

    stage = Stage(tmp_path, on_write=fail)
    with pytest.raises(ServerError, match="still has 10 %"):
        stage.run()


def test_runner_leaves_to_others_what_they_have_changed(tmp_path: Path) -> None:
    def refuse(weight: float) -> None:
        if weight == 100.0:
            raise ForeignChangeError("another canary")

    stage = Stage(tmp_path, on_write=refuse)
    end, state = stage.run()
    assert (stage.weights, end.reason, state.phase) == ([10.0], "changed_by_others", "undone")


def test_runner_goes_on_where_the_state_cannot_be_written(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    def lose(weight: float) -> None:
        if weight == 10.0:
            (tmp_path / "state").unlink()
            (tmp_path / "state").mkdir()
        else:
            (tmp_path / "state").rmdir()

    stage.on_write = lose
    _, state = stage.run()
    assert (stage.weights, state.phase) == ([10.0, 100.0], "done")


def test_runner_moves_weights_of_an_httproute(tmp_path: Path) -> None:
    fake = FakeKubeApi()
    seen: list[int] = []
    fake.on_change = seen.append
    with fake.listening() as url:
        route = HttpRoute(KubeApi(kube_address(url)), "trident/trident", "trident", "trident-canary")
        end, _ = Stage(tmp_path).run(RouteRouting(route, ("trident/trident", "trident", "trident-canary")))
        assert (end.phase, seen) == ("done", [10, 100])
        route.take_back()
        seen.clear()
        bad = Stage(tmp_path, counted=Window(side(1000), side(100, errors=50)))
        end, _ = bad.run(RouteRouting(route, ("trident/trident", "trident", "trident-canary")))
        assert (end.reason, seen) == ("errors", [10, 0])
        # A gateway that does not take a weight has no window.
        fake.takes = False
        seen.clear()
        end, _ = Stage(tmp_path).run(RouteRouting(route, ("trident/trident", "trident", "trident-canary")))
        assert (end.reason, seen) == ("weight_not_shown", [10, 0])


def test_runner_that_goes_on_writes_its_weight_once_more(tmp_path: Path) -> None:
    # The command died after it had written 100 into the routes, and before it could say so.
    state = RolloutState(("http://b:1",), "settling", 1, PLAN.stages, 10.0, reference=side(1000))
    stage = Stage(tmp_path, weights=[10.0])
    end, _ = stage.run(state=state)
    assert (end.phase, stage.weights) == ("done", [10.0, 100.0])
    again = Stage(tmp_path, weights=[100.0])
    end, _ = again.run(state=replace(state, weight=100.0))
    assert (end.phase, again.weights) == ("done", [100.0, 100.0])


def test_runner_keeps_what_it_wants_before_it_is_in_force(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    seen: list[tuple[str, int, float]] = []

    def look(_: float) -> None:
        state = file.read()
        assert state is not None
        seen.append((state.phase, state.stage, state.weight))

    Stage(tmp_path, on_write=look).run()
    assert seen == [("settling", 0, 0.0), ("settling", 1, 10.0)]


def test_runner_that_goes_on_with_an_undoing_ends_it(tmp_path: Path) -> None:
    state = RolloutState(("http://b:1",), "undoing", 0, PLAN.stages, 10.0, reason="errors")
    assert resumable(state, ("http://b:1",)) is state
    stage = Stage(tmp_path, weights=[10.0])
    end, _ = stage.run(state=state)
    assert (end.phase, end.reason, end.undone, stage.weights) == ("undone", "errors", {"errors": 1}, [10.0, 0.0])


def test_runner_knows_its_end_where_the_state_cannot_be_written(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    def lose(weight: float) -> None:
        if weight == 100.0:
            (tmp_path / "state").unlink()
            (tmp_path / "state").mkdir()

    def heal(seconds: float) -> None:
        stage.now += seconds
        if stage.now > 17 and (tmp_path / "state").is_dir():
            (tmp_path / "state").rmdir()

    stage.on_write, stage.sleep = lose, heal  # type: ignore[method-assign]
    end, written = stage.run()
    assert (end.phase, written.phase) == ("done", "done")


def test_a_failure_that_nobody_has_foreseen_leaves_nobody_with_the_canary(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    look = stage.look

    def fail() -> Look:
        if stage.now > 4:
            raise RuntimeError("a bug")
        return look()

    stage.look = fail  # type: ignore[method-assign]
    stage.count_models = lambda _: None  # type: ignore[attr-defined]
    around = Surroundings(
        stage, stage, StateFile(tmp_path / "state"), RolloutMetrics({}), stage.said.append, lambda: 0,  # type: ignore[arg-type]
        monotonic=lambda: stage.now, sleep=stage.sleep,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="a bug"):
        resume(PLAN, around, RolloutState(("http://b:1",), "settling", 0, PLAN.stages, 0.0))
    assert stage.weights == [10.0, 0.0]
    state = around.state.read()
    assert state is not None
    assert (state.phase, state.reason) == ("undone", "failed")
