"""Requests whose guide is being compiled: others are served, and whoever waits can leave."""

from __future__ import annotations

import time

from tests.backend.serving.test_responses import Reader, alike, stop
from tests.fakes.core import SPEC, Client, expected_tokens
from tests.fakes.serving import Guides, serving, until
from trident_backend.engine.mock import MockEngine
from trident_backend.metrics.records import RequestRecord
from trident_backend.sequences.sequence import FinishReason
from trident_ensemble.contract.errors import (
    DeadlineError,
    DrainingError,
    InternalError,
    InvalidGuideError,
)

GUIDED = {"input_ids": [4], "max_tokens": 40, "guided_decoding_guide_type": b"regex"}


def test_grammar_jobs_a_guide_is_compiled_while_others_are_served() -> None:
    guides = Guides()
    with serving(MockEngine(SPEC), guides=guides) as service:
        guides.gate.clear()
        guided, plain = Reader(), Reader()
        service.submit(GUIDED | {"guided_decoding_guide": b"7", "num_return_sequences": 2}, guided)
        service.submit({"input_ids": [5], "max_tokens": 5}, plain)
        assert plain.done.wait(60)
        assert not guided.done.is_set()
        assert service.stats.num_open == 2
        guides.gate.set()
        assert guided.done.wait(60)
    assert guided.ids == alike(expected_tokens([4], 7), 2), "each sequence has a guide of its own"
    assert guided.reasons == {0: "stop", 1: "stop"}


def test_grammar_jobs_a_guide_that_cannot_be_compiled_is_refused_and_leaves_nothing() -> None:
    with serving(MockEngine(SPEC)) as service:
        for guide, kind in ((b"x", InvalidGuideError), (b"crash", InternalError)):
            client = Client()
            service.submit(GUIDED | {"guided_decoding_guide": guide}, client, "g")
            assert client.done.wait(60)
            assert isinstance(client.errors[0], kind)
        until(lambda: service.stats.num_open == 0)
        records = [record for record in service.take_records() if isinstance(record, RequestRecord)]
        assert [record.finish_reason for record in records] == [FinishReason.REFUSED] * 2


def test_grammar_jobs_a_request_is_stopped_while_its_guide_is_compiled() -> None:
    guides = Guides()
    with serving(MockEngine(SPEC), guides=guides) as service:
        guides.gate.clear()
        guided = Reader()
        service.submit(GUIDED | {"guided_decoding_guide": b"7", "num_return_sequences": 2}, guided, "g")
        until(lambda: guides.num_begun == 1)
        stop(service, "g")
        assert guided.done.wait(60)
        guides.gate.set()
        until(lambda: service.stats.num_open == 0)
        time.sleep(0.02)
        assert service.stats.num_steps == 0
    assert guided.num_finals == 1
    assert guided.reasons == {0: "cancelled", 1: "cancelled"}


def test_grammar_jobs_the_end_of_the_server_finds_those_whose_guide_is_compiled() -> None:
    guides = Guides()
    guides.gate.clear()
    with serving(MockEngine(SPEC), guides=guides) as service:
        clients = [Client() for _ in range(5)]
        for client in clients:
            service.submit(GUIDED | {"guided_decoding_guide": b"7"}, client)
        until(lambda: guides.num_begun > 0)
    guides.gate.set()
    assert all(isinstance(client.errors[0], DrainingError) for client in clients)
    time.sleep(0.05)
    assert all(client.num_finals == 1 for client in clients)


def test_grammar_jobs_stopped_requests_leave_the_queue_of_guides() -> None:
    """So that nobody makes others wait by asking and stopping."""
    guides = Guides()
    with serving(MockEngine(SPEC), guides=guides) as service:
        guides.gate.clear()
        for _ in range(20):
            guided = Reader()
            service.submit(GUIDED | {"guided_decoding_guide": b"7"}, guided, "g")
            stop(service, "g")
            assert guided.done.wait(60)
        until(lambda: service.stats.num_open == 0)
        num_begun = guides.num_begun
        assert num_begun <= 2, "as many as there are threads"
        guides.gate.set()
        last = Reader()
        service.submit(GUIDED | {"guided_decoding_guide": b"3"}, last)
        assert last.done.wait(60)
        assert guides.num_begun == num_begun + 1


def test_grammar_jobs_a_timeout_counts_while_a_guide_waits_to_be_compiled() -> None:
    guides = Guides()
    with serving(MockEngine(SPEC), guides=guides) as service:
        guides.gate.clear()
        late, in_time = Client(), Client()
        service.submit(GUIDED | {"guided_decoding_guide": b"7", "timeout_ms": 30}, late)
        service.submit(GUIDED | {"guided_decoding_guide": b"7", "timeout_ms": 60_000}, in_time)
        assert late.done.wait(60)
        assert isinstance(late.errors[0], DeadlineError)
        guides.gate.set()
        assert in_time.done.wait(60)
        assert not in_time.errors
        until(lambda: service.stats.num_open == 0)
    assert (late.num_finals, in_time.num_finals) == (1, 1)
