"""The unary front, with the models behind it doubled: one answer for each request, whatever the core says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.fakes import triton as fake_triton
from tests.fakes.serving import until
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import QueueFullError, wire_message

Shell = fake_triton.load_shell("trident_ensemble")
Answers = list[fake_triton.InferenceResponse]


def _response(**outputs: Any) -> fake_triton.InferenceResponse:
    return fake_triton.InferenceResponse(
        [fake_triton.Tensor(name, np.array([value], np.int32)) for name, value in outputs.items()]
    )


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[fake_triton.InferenceRequest], Answers]]:
    """What the core does with a request: the last of these."""
    behaviours: list[Callable[[fake_triton.InferenceRequest], Answers]] = []

    def behave(request: fake_triton.InferenceRequest) -> Answers:
        return behaviours[-1](request)

    monkeypatch.setattr(
        fake_triton.InferenceRequest,
        "models",
        {
            layout.PREPROCESSING: lambda _: [_response(input_ids=[1])],
            layout.CORE: behave,
            layout.POSTPROCESSING: lambda _: [_response(text_output=[7, 8])],
        },
    )
    return behaviours


@pytest.fixture
def front() -> Iterator[Any]:
    model = Shell()
    parameters = {"max_concurrent_requests": {"string_value": "2"}}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    yield model
    model.finalize()


def _ask(front: Any, request_id: str = "", **flags: bool) -> fake_triton.ResponseSender:
    inputs = [fake_triton.Tensor(name, np.array([[value]], np.bool_)) for name, value in flags.items()]
    request = fake_triton.InferenceRequest(inputs, request_id)
    front.execute([request])
    return request.sender


def _answer(sender: fake_triton.ResponseSender) -> fake_triton.InferenceResponse:
    until(lambda: sender.is_closed)
    (response,) = sender.responses
    return response


def test_responses_unary_outputs_are_those_that_came_with_all_their_rows(front: Any, core: list[Any]) -> None:
    core.append(lambda _: [_response(output_ids=[1, 2], chunk=[0], finish_reason=[1, 1]), _response()])
    outputs = {tensor.name(): tensor.as_numpy().tolist() for tensor in _answer(_ask(front)).output_tensors()}
    assert outputs == {"text_output": [[7, 8]], "output_ids": [[1, 2]], "finish_reason": [[1, 1]]}


def test_responses_unary_a_refusal_keeps_its_code(front: Any, core: list[Any]) -> None:
    refusal = fake_triton.TritonError(wire_message(QueueFullError("the queue is full")))
    core.append(lambda _: [fake_triton.InferenceResponse(error=refusal)])
    error = _answer(_ask(front)).error()
    assert error is not None
    assert error.code() == fake_triton.ErrorCode.UNAVAILABLE


def test_responses_unary_a_core_that_says_nothing_is_an_error(front: Any, core: list[Any]) -> None:
    core.append(lambda _: [_response()])
    error = _answer(_ask(front)).error()
    assert error is not None
    assert "[INTERNAL] the core gave no answer" in error.message()


def test_responses_unary_a_stream_is_refused(front: Any) -> None:
    error = _answer(_ask(front, stream=True)).error()
    assert error is not None
    assert "[INVALID_ARG] stream: " in error.message()


def test_responses_unary_a_full_house_can_be_stopped(front: Any, core: list[Any]) -> None:
    stopped = {request_id: threading.Event() for request_id in ("1", "2")}

    def serve(request: fake_triton.InferenceRequest) -> Answers:
        if fake_triton.get_input_tensor_by_name(request, "stop") is not None:
            stopped[request.request_id()].set()
        else:
            assert stopped[request.request_id()].wait(60)
        return [_response(output_ids=[], chunk=[0])]

    core.append(serve)
    held = [_ask(front, request_id) for request_id in stopped]
    error = _answer(_ask(front, "3")).error()
    assert error is not None
    assert "max_concurrent_requests 2" in error.message()
    for request_id in stopped:
        assert not _answer(_ask(front, request_id, stop=True)).has_error()
    assert not any(_answer(sender).has_error() for sender in held)
    stopped["4"] = threading.Event()
    stopped["4"].set()
    for _ in range(3):
        assert not _answer(_ask(front, "4")).has_error(), "the places are free again"


def test_responses_unary_walks_the_steps_of_its_own_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def answers(model: str, **outputs: Any) -> Callable[[fake_triton.InferenceRequest], Answers]:
        return lambda _: called.append(model) or [_response(**outputs)]  # type: ignore[func-returns-value]

    models = {
        "small_preprocessing": answers("small_preprocessing", input_ids=[1]),
        "small_core": answers("small_core", output_ids=[2], chunk=[0]),
        "small_postprocessing": answers("small_postprocessing", text_output=[7]),
    }
    monkeypatch.setattr(fake_triton.InferenceRequest, "models", models)
    front = Shell()
    front.initialize({"model_config": json.dumps({"parameters": {"ensemble": {"string_value": "small"}}})})
    assert not _answer(_ask(front)).has_error()
    front.finalize()
    assert called == ["small_preprocessing", "small_core", "small_postprocessing"]
