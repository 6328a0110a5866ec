"""The shell: tensors in and out, unknown fields, and errors that stay with their own request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import triton
from tests.preprocessing.engines import make_engine_folder
from tests.tokenizer_zoo import tokenizer_of
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import ConfigError

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


def request(parameters: dict[str, Any] | None = None, **values: Any) -> triton.InferenceRequest:
    """Values of the shape [1, 1], as clients send them; arrays as they are."""
    values = {"max_tokens": np.array([[4]], np.int32), **values}
    inputs = []
    for name, value in values.items():
        dtype = {bytes: np.object_, int: np.int32}.get(type(value))
        array = value if isinstance(value, np.ndarray) else np.array([[value]], dtype)
        inputs.append(triton.Tensor(name, array))
    return triton.InferenceRequest(inputs, "7", parameters)


def execute(model: Any, requests: list[triton.InferenceRequest]) -> list[Any]:
    """The answers to requests, in their order."""
    assert model.execute(requests) is None
    for asked in requests:
        assert asked.sender.closed.wait(60)
    assert all(len(asked.sender.responses) == 1 for asked in requests)
    return [asked.sender.responses[0] for asked in requests]


def outputs(model: Any, asked: triton.InferenceRequest) -> dict[str, Any]:
    (response,) = execute(model, [asked])
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def refusal(model: Any, asked: triton.InferenceRequest) -> str:
    (response,) = execute(model, [asked])
    assert response.error().code() == triton.TritonError.INVALID_ARG
    message: str = response.error().message()
    return message.removeprefix("[INVALID_ARG] ")


def texts(*values: bytes) -> Any:
    array = np.empty((1, len(values)), np.object_)
    array[0] = values
    return array


def test_triton_model_every_output_is_always_there(model: Any) -> None:
    made = outputs(model, request({"timeout": 5}, text_input="naïve 東京".encode()))
    assert list(made) == [spec.name for spec in tensors.PREPROCESSING_OUTPUTS]
    assert {name: array.dtype for name, array in made.items()} == {
        "input_ids": np.int32,
        "bad_words_list": np.int32,
        "flow_control": np.bool_,
    }
    assert made["input_ids"].tolist() == [tokenizer_of("llama_2").encode("naïve 東京").ids]
    assert made["bad_words_list"].tolist() == [[[-1], [-1]]]
    assert made["flow_control"].tolist() == [[True]]


@pytest.mark.parametrize("ids", [np.array([[5, 0, 7]], np.int32), np.array([5, 0, 7], np.int32)])
def test_triton_model_ids_are_the_prompt(model: Any, ids: Any) -> None:
    assert outputs(model, request(prompt_token_ids=ids))["input_ids"].tolist() == [[5, 0, 7]]


def test_triton_model_too_many_ids_are_refused_before_they_are_read(model: Any) -> None:
    ids = np.zeros((1, (1 << 20) + 1), np.int32)
    asked = request(prompt_token_ids=ids, truncate_prompt_tokens=5)
    assert refusal(model, asked).startswith("context_length: prompt_token_ids: 1048577 ids are too many: at most")
    assert outputs(model, request(prompt_token_ids=ids[:, 1:], truncate_prompt_tokens=5))["input_ids"].shape == (1, 5)


def test_triton_model_bad_words(model: Any) -> None:
    for none in (texts(b""), texts(), texts(b"", b"")):
        made = outputs(model, request(text_input=b"a", bad_words=none))
        assert made["bad_words_list"].tolist() == [[[-1], [-1]]]
    ids, ends = outputs(model, request(text_input=b"a", bad_words=texts(b"three", b"", b"prongs")))["bad_words_list"][0]
    assert ends.max() == len(ids)
    first = ids[: ends[0]].tolist()
    assert tokenizer_of("llama_2").decode(first) == "three"
    assert refusal(model, request(text_input=b"a", bad_words=texts(b"a", b"\xff"))).startswith("bad_words: is not")


def test_triton_model_values_come_in_either_shape(model: Any) -> None:
    text = b"one two three four five"
    both: dict[str, Any] = {"truncate_prompt_tokens": 3, "truncation_side": b"right", "stop": False}
    flat: dict[str, Any] = {
        "text_input": np.array([text], np.object_),
        "truncate_prompt_tokens": np.array([3], np.int32),
        "truncation_side": np.array([b"right"], np.object_),
        "stop": np.array([False]),
    }
    expected = [tokenizer_of("llama_2").encode(text.decode()).ids[:3]]
    assert outputs(model, request(text_input=text, **both))["input_ids"].tolist() == expected
    assert outputs(model, request(**flat))["input_ids"].tolist() == expected


def test_triton_model_the_longest_prompt_is_the_engines(model: Any) -> None:
    asked = request(text_input=b"word " * 90, truncate_prompt_tokens=-1, max_tokens=20)
    assert outputs(model, asked)["input_ids"].shape == (1, 44)


def test_triton_model_a_request_that_ends_another_has_no_prompt(model: Any) -> None:
    cases: list[dict[str, Any]] = [{}, {"text_input": b""}, {"text_input": b"a", "bad_words": texts(b"b")}]
    for others in cases:
        made = outputs(model, request(stop=True, **others))
        assert made["input_ids"].tolist() == [[0]]
        assert made["bad_words_list"].tolist() == [[[-1], [-1]]]
        assert made["flow_control"].tolist() == [[True]]
    assert refusal(model, request(stop=False)).startswith("text_input: is missing")


def test_triton_model_chat_options(model: Any) -> None:
    messages = b'[{"role": "user", "content": "hi"}]'
    made = outputs(model, request(messages=messages, add_generation_prompt=False))
    assert tokenizer_of("llama_2").decode(made["input_ids"][0].tolist()).endswith("user: hi")
    made = outputs(model, request(messages=messages, continue_final_message=True))
    assert tokenizer_of("llama_2").decode(made["input_ids"][0].tolist(), skip_special_tokens=False).endswith(": hi")
    assert refusal(model, request(messages=messages, tools=b"{")).startswith("tools: is not valid JSON")


@pytest.mark.parametrize("spec", [spec for spec in tensors.PREPROCESSING_INPUTS if spec.dims == (1,)])
def test_triton_model_two_values_where_one_is_due_are_refused_by_name(model: Any, spec: tensors.TensorSpec) -> None:
    dtype = {"STRING": np.object_, "INT32": np.int32, "BOOL": np.bool_}[spec.dtype]
    for shape in ((1, 2), (1, 0)):
        values: dict[str, Any] = {"text_input": b"a", spec.name: np.zeros(shape, dtype)}
        asked = request(**values)
        assert refusal(model, asked) == f"{spec.name}: must hold one value, not {shape[1]}"


def test_triton_model_messages(model: Any) -> None:
    (response,) = execute(model, [request(messages=b'[{"role": "user", "content": "hi"}]')])
    text = tokenizer_of("llama_2").decode(response.output_tensors()[0].as_numpy()[0].tolist())
    assert "user: hi" in text


def test_triton_model_bad_requests_harm_no_other(model: Any) -> None:
    responses = execute(
        model,
        [
            request(text_input=b"good"),
            request(text_input=b"\xff"),
            request({"temprature": 0.5}, text_input=b"good"),
            request(),
            triton.InferenceRequest([triton.Tensor("text_input", np.array([[b"a", b"b"]], np.object_))]),
            request(text_input=b"good"),
        ],
    )
    assert [response.has_error() for response in responses] == [False, True, True, True, True, False]
    messages = [response.error().message() for response in responses[1:5]]
    assert [message.split(" ")[:2] for message in messages] == [
        ["[INVALID_ARG]", "text_input:"],
        ["[INVALID_ARG]", "temprature:"],
        ["[INVALID_ARG]", "text_input:"],
        ["[INVALID_ARG]", "text_input:"],
    ]
    assert "unknown field; known are text_input, add_special_tokens, prompt_token_ids, messages, " in messages[1]
    assert all(response.error().code() == triton.TritonError.INVALID_ARG for response in responses[1:5])


def test_triton_model_an_unforeseen_failure_is_answered(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_tokenizer", None)
    (response,) = execute(model, [request(text_input=b"good")])
    assert response.error().code() == triton.TritonError.INTERNAL


def test_triton_model_settings_are_checked_at_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parameters\.colour: unknown"):
        start(tmp_path, colour="blue")
