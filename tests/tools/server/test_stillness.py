"""When a server whose engine stands still calls itself not ready, and ready again, on a clock that is turned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_tools.server import stillness
from trident_tools.server.stillness import STILL_AFTER_S, CoreFigures, EngineProgress, StillnessWatch
from trident_tools.server.triton_server import Listen
from trident_tools.server.triton_status import TritonStatus

PAGE = """\
# HELP nv_trt_llm_request_metrics requests in the core
nv_trt_llm_request_metrics{model="core",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="core",request_type="scheduled",version="1"} 2
nv_trt_llm_request_metrics{model="core",request_type="active",version="1"} 7
nv_trt_llm_request_metrics{model="small_core",request_type="active",version="1"} 1
nv_trt_llm_general_metrics{general_type="iteration_counter",model="core",version="1"} 1.5e+06
nv_inference_pending_request_count{model="core",version="1"} 4
nv_inference_pending_request_count{model="preprocessing",version="1"} 1
nv_trt_llm_general_metrics{general_type="timestamp",model="core",version="1"} 1795941864.196492
"""


class Stage:
    """A server whose figures and answers the test decides."""

    def __init__(self) -> None:
        self.now = 0.0
        self.figures: dict[str, CoreFigures] = {"core 1": CoreFigures(5, 0, 0)}
        self.answers = self.is_heard = self.is_obeyed = True
        self.events: list[str] = []
        self.watch = StillnessWatch(self, self, complain=self.events.append, say=self.events.append)

    def core_figures(self) -> Mapping[str, CoreFigures]:
        if not self.is_heard:
            raise OSError("no answer")
        return self.figures

    def withdraw_readiness(self) -> None:
        self._set("withdrawn")

    def give_readiness_back(self) -> None:
        self._set("given back")

    def _set(self, what: str) -> None:
        if not self.is_obeyed:
            raise OSError("refused")
        self.events.append(what)
        if not self.answers:
            raise OSError("no answer")

    def look_for(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.2)):
            self.now += 0.2
            self.watch.look()

    def set(self, num_steps: int, num_open: int, num_at_work: int) -> None:
        self.figures = {"core 1": CoreFigures(num_steps, num_open, num_at_work)}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(stillness, "time", SimpleNamespace(monotonic=lambda: stage.now))
    return stage


def test_stillness_withdraws_readiness_after_ten_seconds_and_gives_it_back_with_the_next_step(stage: Stage) -> None:
    stage.look_for(60)
    stage.set(9, 2, 2)
    stage.look_for(9)
    assert not stage.events
    stage.look_for(4)
    assert stage.events[0] == "withdrawn"
    assert "core 1: no step of the engine for 10 s" in stage.events[1]
    stage.look_for(60)
    assert len(stage.events) == 2
    stage.set(10, 2, 2)
    stage.look_for(2)
    assert stage.events[2] == "given back"
    stage.look_for(20)
    assert stage.events.count("withdrawn") == 2


def test_stillness_of_an_engine_that_nobody_waits_for_is_none(stage: Stage) -> None:
    """Also where the text of a request is finished and its client does not read it."""
    for num_open in (0, 1):
        stage.set(9 + num_open, num_open, 0)
        stage.look_for(60)
    assert not stage.events


def test_stillness_is_seen_where_the_first_step_hangs_and_the_core_cannot_say_that_it_has_work(stage: Stage) -> None:
    stage.set(9, 1, 0)  # one whose client does not read
    stage.look_for(60)
    stage.set(9, 2, 0)
    stage.look_for(12)
    assert stage.events[0] == "withdrawn"
    stage.set(9, 0, 0)  # all have given up
    stage.look_for(2)
    assert stage.events[2] == "given back"


def test_stillness_that_the_server_does_not_hear_of_is_told_again(stage: Stage) -> None:
    stage.set(9, 1, 1)
    stage.is_obeyed = False
    stage.look_for(30)
    assert not stage.events
    stage.is_obeyed = True
    stage.look_for(2)
    assert stage.events[0] == "withdrawn"


@pytest.mark.parametrize("is_obeyed", [True, False])
def test_stillness_whose_end_comes_before_an_answer_leaves_the_server_ready(stage: Stage, is_obeyed: bool) -> None:
    """The call may have had its effect although its answer did not come."""
    stage.set(9, 1, 1)
    stage.answers, stage.is_obeyed = False, is_obeyed
    stage.look_for(11.5)
    stage.answers = stage.is_obeyed = True
    stage.set(10, 1, 1)
    stage.look_for(5)
    assert [event for event in stage.events if event in {"withdrawn", "given back"}][-1] == "given back"
    assert stage.events.count("given back") == 1


def test_stillness_that_comes_back_before_an_answer_is_told(stage: Stage) -> None:
    stage.set(9, 1, 1)
    stage.look_for(12)
    stage.answers = False
    stage.set(10, 1, 1)
    stage.look_for(1.5)
    stage.answers = True
    stage.look_for(12)
    assert [event for event in stage.events if event in {"withdrawn", "given back"}][-1] == "withdrawn"


def test_stillness_is_not_what_nothing_is_heard_of(stage: Stage) -> None:
    """As where tritonserver was stopped and goes on: its first figures are those of before."""
    stage.set(9, 2, 2)
    stage.look_for(5)
    stage.is_heard = False
    stage.look_for(60)
    stage.is_heard = True
    stage.look_for(5)
    assert not stage.events


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_stillness_takes_ten_seconds_without_a_step_in_each_of_which_somebody_waits(
    history: list[tuple[int, int, int]],
) -> None:
    """Against the history itself: one look a second, of steps made since the last, open and at work."""
    progress, num_steps = EngineProgress(), 0
    for now, (step, num_open, num_at_work) in enumerate(history):
        num_steps += step
        still = progress.still_cores(now, {"core": CoreFigures(num_steps, num_open, num_at_work)})
        last = history[max(0, now - int(STILL_AFTER_S) + 1) : now + 1]
        if any(step for step, _, _ in last) or len(last) < STILL_AFTER_S:
            assert not still
        elif all(at_work for _, _, at_work in last) and now >= STILL_AFTER_S:
            assert still == ["core"]


def test_stillness_reads_the_figures_of_the_metrics_page(monkeypatch: pytest.MonkeyPatch) -> None:
    status = TritonStatus(Listen("127.0.0.1", 1, 2, 3), {})
    states = {"core": "READY", "small_core": "READY"}

    def answer(_method: str, _port: int, path: str) -> tuple[int, bytes]:
        index = [{"name": name, "version": "1", "state": state} for name, state in states.items()]
        return 200, PAGE.encode() if path == "/metrics" else json.dumps(index).encode()

    monkeypatch.setattr(status, "_ask", answer)
    assert status.core_figures() == {"core 1": CoreFigures(1_500_000, 7, 9)}
    assert status.num_active_requests() == 8
    states["core"] = "UNLOADING"
    assert status.core_figures() == {}, "new requests are not for it, so it does not make the server useless"
    assert status.num_active_requests() == 8
    states["core"] = "UNAVAILABLE"
    assert status.num_active_requests() == 1, "its last numbers stay on the page"
    monkeypatch.setattr(status, "_ask", lambda *_: (500, b""))
    with pytest.raises(OSError, match="500"):
        status.core_figures()
