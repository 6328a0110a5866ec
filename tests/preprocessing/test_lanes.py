"""Requests that take long hold up none of another kind, and what waits is bounded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import triton
from tests.preprocessing.engines import CHAT_TEMPLATE, make_engine_folder
from tests.preprocessing.test_triton_model import execute, request, start
from trident_ensemble.contract.errors import UnavailableError
from trident_preprocessing import lanes as lanes_module
from trident_preprocessing.lanes import LARGE_BYTES, Lane, Lanes

SLOW_TEMPLATE = (
    "{% if messages[0].content == 'loop' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}" + CHAT_TEMPLATE
)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes()
    yield made
    made.close(10)
    assert not [thread for thread in threading.enumerate() if thread in made._threads]


def wait(gate: threading.Event) -> None:
    assert gate.wait(60)


def messages(content: str) -> bytes:
    return json.dumps([{"role": "user", "content": content}]).encode()


@pytest.mark.parametrize("taken", Lane)
def test_lanes_a_lane_that_is_full_holds_up_no_other(lanes: Lanes, taken: Lane) -> None:
    gate, done = threading.Event(), {lane: threading.Event() for lane in Lane}
    for _ in range(50):
        lanes.put(taken, 1, partial(wait, gate))
    for lane in Lane:
        lanes.put(lane, 1, done[lane].set)
    assert all(done[lane].wait(60) for lane in Lane if lane is not taken)
    assert not done[taken].is_set()
    gate.set()
    assert done[taken].wait(60)


def test_lanes_large_requests_wait_for_each_other_whatever_they_are(lanes: Lanes) -> None:
    gate, done = threading.Event(), threading.Event()
    for lane in (Lane.PROMPTS, Lane.CHATS):
        for _ in range(20):
            lanes.put(lane, LARGE_BYTES + 1, partial(wait, gate))
        lanes.put(lane, LARGE_BYTES, done.set)
        assert done.wait(60)
        done.clear()
    gate.set()


def test_lanes_what_waits_is_bounded_and_given_back(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "MAX_BYTES", 1000)
    gate = threading.Event()
    for _ in range(10):
        lanes.put(Lane.PROMPTS, 100, partial(wait, gate))
    with pytest.raises(UnavailableError, match="requests of 1000 bytes wait to be tokenized"):
        lanes.put(Lane.CHATS, 1, lambda: None)
    gate.set()
    done = threading.Event()
    while True:
        try:
            lanes.put(Lane.CHATS, 1000, done.set)
            break
        except UnavailableError:
            gate.wait(0.01)
    assert done.wait(60)


def test_lanes_one_clients_templates_and_giant_prompts_stop_nobody_elses_prompts(tmp_path: Path) -> None:
    """With the real tokenizer: each of these alone would hold the model for seconds."""
    make_engine_folder(tmp_path / "core" / "1", "byte_level_bpe", chat_template=SLOW_TEMPLATE, max_seq_len=200_000)
    model = start(tmp_path)
    giant = b"x" * 500_000
    hostile = [request(text_input=giant) for _ in range(3)] + [request(messages=messages("loop")) for _ in range(8)]
    model.execute(hostile)
    texts = [request(text_input=b"a prompt") for _ in range(20)]
    for response in execute(model, texts):
        assert not response.has_error()
    assert not all(asked.sender.closed.is_set() for asked in hostile), "they were not waited for"
    for response in execute(model, [request(messages=messages("hi")) for _ in range(10)]):
        assert not response.has_error()
    for asked in hostile:
        assert asked.sender.closed.wait(60)
    errors = [asked.sender.responses[0].error() for asked in hostile[3:]]
    codes = {error.code() for error in errors if error is not None}
    assert None not in errors
    assert codes <= {triton.TritonError.INVALID_ARG, triton.TritonError.UNAVAILABLE}
    for response in execute(model, [request(messages=messages("hi"))]):
        assert not response.has_error()
    model.finalize()


def test_lanes_what_is_left_is_answered_at_the_end(tmp_path: Path) -> None:
    make_engine_folder(tmp_path / "core" / "1", "byte_level_bpe")
    model: Any = start(tmp_path)
    asked = [request(text_input=b"a prompt") for _ in range(100)]
    model.execute(asked)
    model.finalize()
    assert all(len(each.sender.responses) == 1 for each in asked)
