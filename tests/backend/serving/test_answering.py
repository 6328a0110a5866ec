"""What a wake-up of the thread that answers looks at: by counting, not by time."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

from tests.fakes.core import SPEC, Client
from tests.fakes.serving import Speller, context, until
from trident_backend.requests.request import Request, parse_request
from trident_backend.serving.answering import AnsweringThread
from trident_backend.serving.answers import Answer
from trident_backend.serving.events import TokenEvent
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_ensemble.contract.errors import DrainingError
from trident_ensemble.contract.settings import CoreSettings

_NUM_OPEN = 300
_SETTINGS = CoreSettings(pause_after_ms=60_000, abandon_after_ms=60_000, stream_interval_ms=0)


class BuildRequest(Client):
    """Counts how often it is asked whether it is gone."""

    num_questions = 0

    def is_cancelled(self) -> bool:
        type(self).num_questions += 1
        return super().is_cancelled()


class Open:
    """So many open requests and the thread that answers them, whose looks are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
        BuildRequest.num_questions = 0
        self.num_looks = 0
        self.num_columns_read: list[int] = []
        look = Answer.next

        def counted(answer: Answer, now: float) -> Any:
            self.num_looks += 1
            return look(answer, now)

        monkeypatch.setattr(Answer, "next", counted)
        anchors = bytes([1]) * SPEC.vocab_size
        self.streams = AnsweringThread(
            _SETTINGS, _NUM_OPEN, anchors, OutputTensorBuilder(SPEC.block_size, 0, Speller()),
            clock=time.monotonic, tell=lambda *_: None, on_closed=lambda _: None, on_fatal=lambda _: None,
        )  # fmt: skip
        read = self.streams._watch.table.num_acknowledged

        def counting(columns: list[int]) -> list[int]:
            self.num_columns_read.append(len(columns))
            return read(columns)

        monkeypatch.setattr(self.streams._watch.table, "num_acknowledged", counting)
        ids = itertools.count(1)
        asked = {"input_ids": [1], "max_tokens": 40, **fields}
        self.requests = [parse_request(ids, asked, context(), 0.0) for _ in range(_NUM_OPEN)]
        self.clients = [BuildRequest() for _ in self.requests]
        self.streams.start()
        for request, client in zip(self.requests, self.clients, strict=True):
            self.streams.open(request, client)

    def say(self, *requests: Request) -> None:
        for request in requests:
            request.first.token_ids.append(7)
        self.streams.emit([TokenEvent(request.first.sequence_id, 1, None) for request in requests])

    def close(self) -> None:
        self.streams.stop(DrainingError("the end"))
        assert all(client.num_finals == 1 for client in self.clients)


def test_answering_those_of_whom_nothing_is_heard_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Open(monkeypatch, stream=True, flow_control=True)
    opened.say(*opened.requests[:2])
    until(lambda: all(client.chunks for client in opened.clients[:2]))
    opened.say(opened.requests[0])  # it has to wait for an acknowledgement, which is looked for every 2 ms
    until(lambda: len(opened.num_columns_read) > 20)
    num_looks = opened.num_looks
    opened.close()
    assert set(opened.num_columns_read) <= {0, 1, 2}, "the two that are on their way"
    assert num_looks <= 8, "when something was heard of them"


def test_answering_whoever_comes_through_the_ensemble_is_never_asked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    for streaming in (False, True):
        opened = Open(monkeypatch, stream=streaming, flow_control=True)
        opened.say(opened.requests[0])
        threading.Event().wait(0.25)  # longer than two periods of asking
        opened.close()
        assert BuildRequest.num_questions == 0


def test_answering_whoever_calls_the_core_itself_is_asked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Open(monkeypatch, stream=True)
    until(lambda: BuildRequest.num_questions >= 2 * _NUM_OPEN)
    opened.close()
