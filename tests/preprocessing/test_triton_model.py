"""The shell: tensors in and out, unknown fields, and errors that stay with their own request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import fake_triton as triton
from tests.preprocessing.engines import make_engine_folder
from tests.tokenizer_zoo import tokenizer_of
from trident_ensemble.errors import ConfigError

TritonPythonModel = triton.load_shell("trident_preprocessing")


@pytest.fixture
def model(tmp_path: Path) -> Any:
    make_engine_folder(tmp_path / "core" / "1", "llama_2")
    return start(tmp_path)


def start(repository: Path, **parameters: str) -> Any:
    model = TritonPythonModel()
    wrapped = {key: {"string_value": value} for key, value in parameters.items()}
    model.initialize(
        {
            "model_repository": str(repository / "preprocessing"),
            "model_instance_name": "preprocessing_0_0",
            "model_config": json.dumps({"parameters": wrapped}),
        }
    )
    return model


def request(parameters: dict[str, Any] | None = None, **texts: bytes) -> triton.InferenceRequest:
    inputs = [triton.Tensor(name, np.array([[text]], np.object_)) for name, text in texts.items()]
    inputs.append(triton.Tensor("max_tokens", np.array([[4]], np.int32)))
    return triton.InferenceRequest(inputs, "7", parameters)


def test_token_ids_and_flow_control(model: Any) -> None:
    (response,) = model.execute([request({"timeout": 5}, text_input="naïve 東京".encode())])
    assert not response.has_error()
    ids, flow_control = response.output_tensors()
    assert (ids.name(), ids.as_numpy().dtype) == ("input_ids", np.int32)
    assert ids.as_numpy().tolist() == [tokenizer_of("llama_2").encode("naïve 東京").ids]
    assert (flow_control.name(), flow_control.as_numpy().tolist()) == ("flow_control", [[True]])


def test_messages(model: Any) -> None:
    (response,) = model.execute([request(messages=b'[{"role": "user", "content": "hi"}]')])
    text = tokenizer_of("llama_2").decode(response.output_tensors()[0].as_numpy()[0].tolist())
    assert "user: hi" in text


def test_bad_requests_harm_no_other(model: Any) -> None:
    responses = model.execute(
        [
            request(text_input=b"good"),
            request(text_input=b"\xff"),
            request({"temprature": 0.5}, text_input=b"good"),
            request(),
            triton.InferenceRequest([triton.Tensor("text_input", np.array([[b"a", b"b"]], np.object_))]),
            request(text_input=b"good"),
        ]
    )
    assert [response.has_error() for response in responses] == [False, True, True, True, True, False]
    messages = [response.error().message() for response in responses[1:5]]
    assert [message.split(" ")[:2] for message in messages] == [
        ["[INVALID_ARG]", "text_input:"],
        ["[INVALID_ARG]", "temprature:"],
        ["[INVALID_ARG]", "text_input:"],
        ["[INVALID_ARG]", "text_input:"],
    ]
    assert "unknown field; known are text_input, messages, max_tokens" in messages[1]
    assert all(response.error().code() == triton.TritonError.INVALID_ARG for response in responses[1:5])


def test_an_unforeseen_failure_is_answered(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_tokenizer", None)
    (response,) = model.execute([request(text_input=b"good")])
    assert response.error().code() == triton.TritonError.INTERNAL


def test_settings_are_checked_at_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parameters\.colour: unknown"):
        start(tmp_path, colour="blue")
