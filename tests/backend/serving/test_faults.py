"""Whatever raises, wherever: each request gets its one final answer, and the core serves on or says that it cannot.

A fault is put at any call of any collaborator of the two threads, of those that submit and of those that compile.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.core import SPEC, Client, expected_tokens
from tests.fakes.serving import CountdownGuide, Guides, make_service, until
from trident_backend.engine.mock import MockEngine
from trident_backend.requests.request import Request
from trident_backend.sequences.guide import Masks
from trident_backend.serving.responses import Response
from trident_backend.serving.service import CoreService
from trident_ensemble.acknowledgements import Acknowledger
from trident_ensemble.contract.errors import InternalError, TridentError
from trident_ensemble.contract.failures import internal_error
from trident_ensemble.contract.settings import CoreSettings


class Panic(BaseException):
    """What a library written in Rust raises when it fails unexpectedly is no Exception either."""


@dataclass(frozen=True)
class Fault:
    """Raised at the `at`-th call of a point; at every call from then on if it is `lasting`."""

    point: str
    at: int = 1
    kind: type[BaseException] = RuntimeError
    lasting: bool = False


#: Methods of what a service is made of.
_PARTS = (
    "_core.submit", "_core.collect",
    "_core.scheduler.add", "_core.scheduler.schedule", "_core.scheduler.update", "_core.scheduler.finish",
    "_core.scheduler.take_ended", "_core.kv_cache.admit", "_core.kv_cache.grow", "_core.kv_cache.commit",
    "_core.kv_cache.release", "_core.kv_cache.take_copies",
    "_core._engine.submit", "_core._engine.collect", "_core._engine.close",
    "_core._sampler.choose", "_core._masks.begin", "_core._masks.close", "_core.step_times.observe",
    "_loop._emit", "_loop._record", "_loop._handle", "_loop._take_early_messages", "_loop._report",
    "_answering._watch.table.open", "_answering._watch.table.release", "_answering._watch.table.num_acknowledged",
    "_answering._watch.table.close", "_answering._watch.look", "_answering.open", "_answering._pump._builder.outputs",
    "_answering._on_closed", "_answering._take", "_answering._pump.take", "_answering._pump.flush",
    "_admission.enter", "_admission.leave", "_guided.add", "_guided.take", "_guided.take_all", "_guided.close",
    "_notice.given",
)  # fmt: skip
#: And what belongs to one request.
_OWN = ("compile", "start", "fill", "advance", "append", "finish", "send", "fail", "is_cancelled")
POINTS = (*_PARTS, *_OWN)


class Injector:
    """Raises the faults."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, point: str) -> None:
        """A point is reached."""
        with self._lock:
            self._calls[point] += 1
            call = self._calls[point]
        for fault in self._faults:
            if fault.point == point and (call >= fault.at if fault.lasting else call == fault.at):
                raise fault.kind(f"injected at call {call} of {point}")

    def wrap(self, owner: object, name: str, point: str) -> None:
        """Put a point before a method."""
        real = getattr(owner, name)

        def reached(*args: Any, **kwargs: Any) -> Any:
            self.reach(point)
            return real(*args, **kwargs)

        setattr(owner, name, reached)


class FaultyGuide(CountdownGuide):
    def __init__(self, num_tokens: int, injector: Injector) -> None:
        super().__init__(num_tokens)
        self._injector = injector

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        self._injector.reach("fill")
        super().fill(draft_ids, masks)

    def advance(self, token_id: int) -> None:
        self._injector.reach("advance")
        super().advance(token_id)


@dataclass
class FaultyGuides(Guides):
    injector: Injector
    gate: threading.Event = field(default_factory=threading.Event)
    num_begun: int = 0

    def compile(self, guide_type: str, guide: str) -> Any:
        self.injector.reach("compile")
        return self

    def start(self, end_ids: frozenset[int], *, begins_text: bool) -> FaultyGuide:
        self.injector.reach("start")
        return FaultyGuide(7, self.injector)


class FaultyClient(Client):
    """Behind a postprocessing that acknowledges; its own ways may fail. It counts final answers, tried or sent."""

    def __init__(self, injector: Injector) -> None:
        super().__init__()
        self._injector = injector
        self._acknowledger = Acknowledger(0)

    def send(self, response: Response) -> None:
        self._injector.reach("send")
        super().send(response)
        header = response.header
        self._acknowledger.acknowledge(header.table_id, header.column, header.secret, header.number)

    def fail(self, error: TridentError) -> None:
        super().fail(error)
        self._injector.reach("fail")

    def is_cancelled(self) -> bool:
        self._injector.reach("is_cancelled")
        return super().is_cancelled()


_PLAIN = {"input_ids": [5, 6], "max_tokens": 12}
_REQUESTS: tuple[dict[str, Any], ...] = (
    _PLAIN,
    _PLAIN | {"stream": True},
    _PLAIN | {"stream": True, "flow_control": True},
    _PLAIN | {"num_return_sequences": 2, "stream": True, "flow_control": True},
    _PLAIN | {"stop_words": [b"abcdeabcde"], "stream": True},
    _PLAIN | {"stop_words": [b"zzz"], "num_return_sequences": 2},
    _PLAIN | {"guided_decoding_guide_type": b"regex", "guided_decoding_guide": b"7"},
    _PLAIN | {"guided_decoding_guide_type": b"regex", "guided_decoding_guide": b"7", "timeout_ms": 60_000},
    _PLAIN | {"return_log_probs": True, "stream": True},
)


class Deployment:
    """A core with faults, its clients, and a shell that answers what the core does not take."""

    def __init__(self, *faults: Fault) -> None:
        self.injector = Injector(*faults)
        self.clients: list[FaultyClient] = []
        self.died = threading.Event()
        self.unanswered_at_death: list[FaultyClient] = []
        guides = FaultyGuides(self.injector)
        core_settings = CoreSettings(pause_after_ms=50, abandon_after_ms=2000)
        self.service: CoreService = make_service(
            MockEngine(SPEC), core_settings, guides=guides, on_fatal=self._on_fatal
        )
        for part in _PARTS:
            *path, name = part.split(".")
            self.injector.wrap(reduce(getattr, path, self.service), name, part)
        self._wrap_stop_strings()

    def _wrap_stop_strings(self) -> None:
        begin: Callable[..., None] = self.service._begin

        def wrapped(request: Request, responder: Any) -> None:
            for sequence in request.sequences:
                if sequence.stop_strings is not None:
                    self.injector.wrap(sequence.stop_strings, "append", "append")
                    self.injector.wrap(sequence.stop_strings, "finish", "finish")
            begin(request, responder)

        self.service._begin = wrapped  # type: ignore[method-assign]

    def _on_fatal(self, _error: BaseException) -> None:
        """The process ends here; whoever has no answer by now never gets one."""
        self.unanswered_at_death += [client for client in self.clients if not client.done.is_set()]
        self.died.set()

    def ask(self, fields: dict[str, Any], request_id: str = "") -> FaultyClient:
        """As `triton_model` does."""
        client = FaultyClient(self.injector)
        try:
            self.service.submit(fields, client, request_id)
        except BaseException as error:
            shown = error if isinstance(error, TridentError) else internal_error("not taken", error)
            with suppress(BaseException):
                client.fail(shown)
        self.clients.append(client)
        return client

    def run(self) -> None:
        """Ask all kinds of things, wait for the answers, and stop; every answer is checked."""
        for number, fields in enumerate(_REQUESTS):
            self.ask(fields, f"name {number % 4}")
        self.ask({"input_ids": [0], "stop": True}, "name 1")
        until(lambda: self.died.is_set() or all(client.done.is_set() for client in self.clients), 60)
        if not self.died.is_set():
            late = self.ask({"input_ids": [9], "max_tokens": 5})
            until(lambda: self.died.is_set() or late.done.is_set(), 60)
        self.service.stop()
        assert not self.unanswered_at_death, "nobody waits for an answer when the process ends"
        for client in self.clients:
            assert client.num_finals == 1
            assert not client.asked_after_final
            output = expected_tokens([5, 6], 12)
            if client.chunks and client.outputs.get("sequence_index") == [0] and len(client.chunks[-1].output_ids) == 1:
                assert client.errors or set(client.output_ids) <= {*output, *expected_tokens([9], 5)}


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
@pytest.mark.parametrize("point", POINTS)
def test_faults_a_fault_at_any_point_leaves_nobody_without_an_answer(point: str, kind: type[BaseException]) -> None:
    Deployment(Fault(point, 2, kind)).run()


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_faults_a_lasting_fault_at_any_point_leaves_nobody_without_an_answer(point: str) -> None:
    Deployment(Fault(point, 1, KeyError, lasting=True)).run()


#: Of faults that come together, none is in the list of those who are still to be answered.
_FAULTS = st.builds(
    Fault,
    st.sampled_from([point for point in POINTS if point != "_guided.take_all"]),
    st.integers(1, 30),
    st.sampled_from([RuntimeError, KeyError, AssertionError, MemoryError, Panic]),
    st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(_FAULTS, min_size=1, max_size=3))
def test_faults_anywhere_together_leave_nobody_without_an_answer(faults: list[Fault]) -> None:
    Deployment(*faults).run()


@pytest.mark.parametrize("point", ["advance", "append", "finish", "fill", "send", "is_cancelled", "compile", "start"])
def test_faults_a_fault_in_what_belongs_to_one_request_ends_that_one_alone(point: str) -> None:
    """With its own error; all others are served whole, and the core goes on."""
    deployment = Deployment(Fault(point, 1, ValueError if point == "fill" else Panic))
    deployment.run()
    assert not deployment.died.is_set()
    failed = [client for client in deployment.clients if client.errors]
    assert len(failed) == 1
    assert isinstance(failed[0].errors[0], TridentError)
    assert "injected" not in str(failed[0].errors[0]), "details are for the log"
    if point != "fill":
        assert isinstance(failed[0].errors[0], InternalError)
    whole = [client for client in deployment.clients[:-2] if client not in failed]
    assert all(client.outputs["finish_reason"] for client in whole)


def test_faults_a_reporter_that_fails_for_one_request_ends_that_one_alone() -> None:
    deployment = Deployment(Fault("_answering._pump._builder.outputs", 3))
    deployment.run()
    assert not deployment.died.is_set()
    assert sum(bool(client.errors) for client in deployment.clients) == 1


def test_faults_a_loop_whose_clean_up_fails_as_well_says_that_it_cannot_go_on() -> None:
    """What broke a step may break whatever would put the sequences away."""
    faults = [Fault(point, 1, KeyError, lasting=True) for point in ("_core.scheduler.update", "_core.kv_cache.release")]
    deployment = Deployment(*faults, Fault("_core.scheduler.finish", 1, KeyError, lasting=True))
    deployment.run()
    assert deployment.died.is_set()
    assert not deployment.service._loop._thread.is_alive()


def test_faults_a_client_that_blocks_does_not_keep_a_dead_loop_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton may not take a response for as long as its memory is full."""
    monkeypatch.setattr("trident_backend.serving.service._ANSWER_S", 0.2)
    released = threading.Event()

    class Blocking(Client):
        def send(self, response: Response) -> None:
            assert released.wait(120)

    died = threading.Event()
    service = make_service(MockEngine(SPEC, step_seconds=0.005), on_fatal=lambda _: died.set())
    injector = Injector(Fault("_core.scheduler.schedule", 4, lasting=True))
    injector.wrap(service._core.scheduler, "schedule", "_core.scheduler.schedule")
    service.submit({"input_ids": [1], "max_tokens": 40, "stream": True}, Blocking())
    assert died.wait(60)
    released.set()


def test_faults_who_ends_the_process_waits_for_the_others_who_still_refuse_requests() -> None:
    """The engine's thread and the one that answers may fail at the same time."""
    guides = Guides()
    guides.gate.clear()
    is_told, may_go_on, died = threading.Event(), threading.Event(), threading.Event()
    told_at_death: list[bool] = []

    class Slow(Client):
        def fail(self, error: TridentError) -> None:
            is_told.set()
            assert may_go_on.wait(60)
            super().fail(error)

    def on_fatal(_error: BaseException) -> None:
        told_at_death.append(client.done.is_set())
        died.set()

    client = Slow()
    service = make_service(MockEngine(SPEC), guides=guides, on_fatal=on_fatal)
    asked = {"input_ids": [1], "max_tokens": 4}
    service.submit(asked | {"guided_decoding_guide_type": b"regex", "guided_decoding_guide": b"7"}, client)
    first = threading.Thread(target=service._die, args=(RuntimeError("the first"),))
    first.start()
    assert is_told.wait(60)
    injector = Injector(Fault("_answering._pump.flush"))
    injector.wrap(service._answering._pump, "flush", "_answering._pump.flush")
    service._answering.emit([])
    assert not died.wait(0.1)
    may_go_on.set()
    assert died.wait(60)
    first.join(60)
    guides.gate.set()
    assert told_at_death
    assert all(told_at_death)
    assert client.num_finals == 1
