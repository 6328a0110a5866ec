"""What tensorrtllm_backend's documented clients send, and what they read of the answer."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.e2e.clients import ask_grpc, events
from tests.e2e.server import Server, post

PERF_OUTPUTS = (
    "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks", "arrival_time_ns",
    "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", "acceptance_rate",
    "total_accepted_draft_tokens", "total_draft_tokens",
)  # fmt: skip
GREEDY: dict[str, Any] = {"text_input": "hello world", "max_tokens": 12, "ignore_eos": True}


def _tensors(fields: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    inputs = []
    for name, array in fields.items():
        tensor = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _end_to_end(prompt: str, output_len: int, **extra: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of the end-to-end client, those that it always sends and further ones."""
    fields = {
        "text_input": np.array([[prompt]], object),
        "max_tokens": np.array([[output_len]], np.int32),
        "bad_words": np.array([[""]], object),
        "stop_words": np.array([[""]], object),
        "stream": np.array([[False]], bool),
        "beam_width": np.array([[1]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        "top_k": np.array([[1]], np.int32),
        "repetition_penalty": np.array([[1.0]], np.float32),
        "end_id": np.array([[-1]], np.int32),
        "pad_id": np.array([[0]], np.int32),
        "exclude_input_in_output": np.array([[True]], bool),
        "ignore_eos": np.array([[True]], bool),
    }
    return fields | extra


def _stream(
    server: Server, fields: dict[str, np.ndarray[Any, Any]], outputs: tuple[str, ...], model: str = "ensemble"
) -> list[Any]:
    """Results as the clients take them: start_stream, one request, stop_stream, whatever the callback was given."""
    results: queue.Queue[Any] = queue.Queue()
    requested = [grpcclient.InferRequestedOutput(name) for name in outputs]
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: results.put(error or result))
        client.async_stream_infer(model, _tensors(fields), outputs=requested or None, request_id="1")
        client.stop_stream()
    found = [results.get() for _ in range(results.qsize())]
    errors = [result for result in found if isinstance(result, InferenceServerException)]
    if errors:
        raise errors[0]
    return found


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    return ask_grpc(server.grpc, **GREEDY).text


@pytest.mark.parametrize("streaming", [False, True])
def test_drop_in_the_end_to_end_client(server: Server, expected: str, streaming: bool) -> None:
    fields = _end_to_end("hello world", 12, stream=np.array([[streaming]], bool))
    text = ""
    results = _stream(server, fields, ("text_output",))
    for result in results:
        text += result.as_numpy("text_output")[0].decode("utf-8")
    assert text == expected
    assert len(results) == 1 or streaming


def test_drop_in_its_log_probs_and_perf_metrics(server: Server) -> None:
    extra = {"return_log_probs": np.array([[True]], bool), "return_perf_metrics": np.array([[True]], bool)}
    before = time.time_ns()
    outputs = ("text_output", "cum_log_probs", "output_log_probs", *PERF_OUTPUTS)
    (result,) = _stream(server, _end_to_end("hello world", 12, **extra), outputs)
    log_probs = result.as_numpy("output_log_probs")
    assert log_probs.shape == (1, 1, 12)
    assert (log_probs < 0).all()
    assert result.as_numpy("cum_log_probs").shape == (1, 1)
    assert result.as_numpy("cum_log_probs")[0][0] == pytest.approx(log_probs.sum(), rel=1e-5)
    times = [int(result.as_numpy(name)[0][0]) for name in PERF_OUTPUTS[3:7]]
    order = [before, *times, time.time_ns()]
    assert order == sorted(order)
    new, reused, total = (int(result.as_numpy(name)[0][0]) for name in PERF_OUTPUTS[:3])
    assert total == new + reused > 0


@pytest.mark.parametrize("streaming", [False, True])
def test_drop_in_its_return_sequences(server: Server, streaming: bool) -> None:
    """Greedy, so all alike; whoever streams tells them apart by sequence_index."""
    extra = {"num_return_sequences": np.array([[3]], np.int32), "stream": np.array([[streaming]], bool)}
    results = _stream(server, _end_to_end("hello world", 6, **extra), ("text_output", "sequence_index"))
    texts = [""] * 3
    for result in results:
        indices = result.as_numpy("sequence_index")[0].tolist()
        for index, text in zip(indices, result.as_numpy("text_output"), strict=True):
            texts[index] += text.decode()
    alone = ask_grpc(server.grpc, **{**GREEDY, "max_tokens": 6})
    assert texts == [alone.text] * 3
    assert len(results) == 1 or streaming


def test_drop_in_its_input_in_the_output(server: Server, expected: str) -> None:
    """exclude_input_in_output is of answers that do not stream, as there."""
    fields = _end_to_end("hello world", 12, exclude_input_in_output=np.array([[False]], bool))
    (whole,) = _stream(server, fields, ("text_output",))
    assert whole.as_numpy("text_output")[0].decode().startswith("hello world")
    streamed = _stream(server, fields | {"stream": np.array([[True]], bool)}, ("text_output",))
    assert "".join(result.as_numpy("text_output")[0].decode() for result in streamed) == expected


def test_drop_in_its_stop_words(server: Server, expected: str) -> None:
    """Two of them, BYTES [1, 2]; the text ends before the one that comes first."""
    words = [expected[5:8], "not in there"]
    (result,) = _stream(server, _end_to_end("hello world", 12, stop_words=np.array([words], object)), ("text_output",))
    assert result.as_numpy("text_output")[0].decode() == expected[: expected.index(words[0])]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", np.array([[2]], np.int32)),
        ("length_penalty", np.array([[0.5]], np.float32)),
        ("return_context_logits", np.array([[True]], bool)),
        ("return_generation_logits", np.array([[True]], bool)),
        ("lora_task_id", np.array([[3]], np.uint64)),
        ("embedding_bias_words", np.array([["a"]], object)),
        ("embedding_bias_weights", np.array([[1.0]], np.float32)),
        ("prompt_vocab_size", np.array([[3]], np.int32)),
        ("prompt_embedding_table", np.zeros((1, 2, 2), np.float16)),
        ("prompt_table_extra_id", np.array([[3]], np.uint64)),
        ("decoder_text_input", np.array([["a"]], object)),
        ("num_draft_tokens", np.array([[3]], np.int32)),
        ("use_draft_logits", np.array([[True]], bool)),
        ("lora_weights", np.zeros((1, 2, 2), np.float16)),
        ("lora_config", np.zeros((1, 1, 3), np.int32)),
    ],
)
def test_drop_in_what_is_not_served_is_refused_by_name(server: Server, name: str, value: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InferenceServerException, match=name):
        _stream(server, _end_to_end("hello", 4, **{name: value}), ("text_output",))


def test_drop_in_generate_as_its_readme_has_it(server: Server, expected: str) -> None:
    body = {"text_input": "hello world", "max_tokens": 12, "bad_words": "", "stop_words": "", "ignore_eos": True}
    status, reply = post(server, "/v2/models/ensemble/generate", body)
    assert (status, json.loads(reply)["text_output"]) == (200, expected)
    body |= {"pad_id": 2, "end_id": 2, "temperature": 0.0, "stream": True}
    status, reply = post(server, "/v2/models/ensemble/generate_stream", body)
    chunks = [chunk for chunk in events(reply) if "text_output" in chunk]
    assert (status, "".join(chunk["text_output"] for chunk in chunks)) == (200, expected)


def test_drop_in_generate_with_lists_of_words(server: Server, expected: str) -> None:
    body = {**GREEDY, "stop_words": [expected[5:8], "not in there"], "bad_words": ["not there either"]}
    status, reply = post(server, "/v2/models/ensemble/generate", body)
    assert (status, json.loads(reply)["text_output"]) == (200, expected[: expected.index(expected[5:8])])


def test_drop_in_genai_perf_sends_min_length(server: Server) -> None:
    body = {"text_input": "hello", "max_tokens": 9, "min_length": 9, "stream": True, "exclude_input_in_output": True}
    _, reply = post(server, "/v2/models/ensemble/generate_stream", body)
    assert [chunk for chunk in events(reply) if "text_output" in chunk][-1]["num_output_tokens"] == 9


def _core_inputs(input_ids: list[int], output_len: int, **extra: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of the client that brings its own tokenizer."""
    fields: dict[str, np.ndarray[Any, Any]] = {
        "input_ids": np.array([input_ids], np.int32),
        "input_lengths": np.array([[len(input_ids)]], np.int32),
        "request_output_len": np.array([[output_len]], np.int32),
        "beam_width": np.array([[1]], np.int32),
        "temperature": np.array([[1.0]], np.float32),
        "runtime_top_k": np.array([[1]], np.int32),
        "runtime_top_p": np.array([[0.0]], np.float32),
        "random_seed": np.array([[0]], np.uint64),
        "streaming": np.array([[True]], bool),
        "end_id": np.array([[-1]], np.int32),
        "pad_id": np.array([[0]], np.int32),
    }
    return fields | extra


def test_drop_in_the_token_client(server: Server) -> None:
    ignore = {"ignore_eos": np.array([[True]], bool)}
    results = _stream(server, _core_inputs([5, 6, 7], 8, **ignore), (), "core")
    streamed = [token_id for result in results for token_id in result.as_numpy("output_ids")[0][0].tolist()]
    (whole,) = _stream(server, _core_inputs([5, 6, 7], 8, **ignore, streaming=np.array([[False]], bool)), (), "core")
    assert whole.as_numpy("output_ids")[0][0].tolist() == streamed
    assert whole.as_numpy("sequence_length")[0].tolist() == [len(streamed)] == [8]


def test_drop_in_its_lengths_must_agree(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="input_lengths"):
        _stream(server, _core_inputs([5, 6, 7], 8, input_lengths=np.array([[4]], np.int32)), (), "core")


@contextmanager
def _open_stream(server: Server) -> Iterator[tuple[Any, queue.Queue[Any]]]:
    results: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: results.put(error or result))
        yield client, results
        client.stop_stream()


def _until_final(results: queue.Queue[Any], num_finals: int) -> list[Any]:
    found = []
    while num_finals:
        result = results.get(timeout=60)
        assert not isinstance(result, InferenceServerException), result
        found.append(result)
        num_finals -= result.get_response().parameters["triton_final_response"].bool_param
    return found


def test_drop_in_stop_by_request_id(server: Server) -> None:
    """As the token client's --stop-after-ms: a second request of the same id, with `stop`."""
    long = _core_inputs([5, 6, 7], 4000, ignore_eos=np.array([[True]], bool))
    stop = {
        "input_ids": np.zeros((1, 1), np.int32),
        "input_lengths": np.zeros((1, 1), np.int32),
        "request_output_len": np.zeros((1, 1), np.int32),
        "stop": np.array([[True]], bool),
    }
    with _open_stream(server) as (client, results):
        client.async_stream_infer("core", _tensors(long), request_id="12345", enable_empty_final_response=True)
        first = results.get(timeout=60)
        client.async_stream_infer("core", _tensors(stop), request_id="12345", enable_empty_final_response=True)
        found = [first, *_until_final(results, 2)]
    reasons = [result.as_numpy("finish_reason") for result in found if result.as_numpy("finish_reason") is not None]
    assert {reason.item().decode() for reason in reasons} == {"cancelled"}
    num_tokens = sum(
        result.as_numpy("output_ids").size for result in found if result.as_numpy("output_ids") is not None
    )
    assert 0 < num_tokens < 4000


@pytest.mark.parametrize("streaming", [True, False])
def test_drop_in_stop_through_the_ensemble(server: Server, streaming: bool) -> None:
    long = _end_to_end("hello world", 4000, stream=np.array([[streaming]], bool))
    with _open_stream(server) as (client, results):
        client.async_stream_infer("ensemble", _tensors(long), request_id="9", enable_empty_final_response=True)
        began = server.num_steps
        while server.num_steps < began + 20:
            time.sleep(0.05)
        stop = _tensors({"stop": np.array([[True]], bool)})
        client.async_stream_infer("ensemble", stop, request_id="9", enable_empty_final_response=True)
        found = _until_final(results, 2)
    reasons = [result.as_numpy("finish_reason") for result in found if result.as_numpy("finish_reason") is not None]
    assert {reason.item().decode() for reason in reasons} == {"cancelled"}
    sizes = [result.as_numpy("output_ids").size for result in found if result.as_numpy("output_ids") is not None]
    assert 0 < sum(sizes) < 4000
