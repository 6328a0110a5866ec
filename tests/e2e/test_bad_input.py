"""Every bad request gets its own error, naming the field, while ten other streams go on undisturbed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import Answer, ask_grpc, make_inputs
from tests.e2e.server import Server, post

GOOD: dict[str, Any] = {"text_input": "hello world", "max_tokens": 4}
GENERATE = "/v2/models/ensemble/generate"


@pytest.fixture(scope="module", autouse=True)
def _ten_streams(server: Server) -> Iterator[None]:
    """Ten streams all through this module; each has to end whole and equal."""
    stop = threading.Event()
    failures: list[object] = []

    def stream() -> None:
        first: Answer | None = None
        while not stop.is_set():
            try:
                answer = ask_grpc(server.grpc, text_input="undisturbed", max_tokens=40, stream=True, ignore_eos=True)
            except InferenceServerException as error:
                failures.append(error)
                return
            first = first or answer
            if answer.text != first.text or answer.output_ids != first.output_ids or answer.num_finals != 1:
                failures.append((first, answer))

    threads = [threading.Thread(target=stream) for _ in range(10)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert server.process.poll() is None


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": 4}, "text_input", "messages"),
    ({"text_input": "", "max_tokens": 4}, "text_input: ", "send at least one character"),
    ({"text_input": b"\xff\xfe", "max_tokens": 4}, "text_input", "UTF-8"),
    ({"text_input": "a", "max_tokens": -2}, "max_tokens", "at least -1"),
    ({"text_input": "a", "max_tokens": 1_000_000}, "max_tokens: ", "the engine holds 4608 tokens"),
    ({"text_input": "a b " * 5000, "max_tokens": 4}, "text_input: ", "max_seq_len is 4608"),
    ({**GOOD, "temperature": -1.0}, "temperature: ", "at least 0"),
    ({**GOOD, "top_p": 2.0}, "top_p: ", "from 0 to 1"),
    ({**GOOD, "top_k": -3}, "top_k: ", "at least 0"),
    ({**GOOD, "timeout_ms": 0}, "timeout_ms: ", "at least 1"),
    ({**GOOD, "priority": 1000}, "priority: ", "from -100 to 100"),
    ({**GOOD, "tenant": "t" * 300}, "tenant: ", "at most 256"),
    ({**GOOD, "cache_salt": "s" * 300}, "cache_salt: ", "at most 256"),
    (
        {**GOOD, "bad_words": [f"{number} " + "zq7" * 80 for number in range(256)]},
        "bad_words: ",
        "16384",
    ),
    ({"messages": "not json", "max_tokens": 4}, "messages", "JSON"),
    ({"messages": "[]", "max_tokens": 4}, "messages: ", "at least one"),
    ({**GOOD, "messages": '[{"role": "user", "content": "hi"}]'}, "messages", "text_input"),
    (
        {"messages": '[{"role": "user", "content": "hi", "refusal": "no"}]', "max_tokens": 4},
        "messages: [0].refusal: ",
        "chat template leaves it out (role 'user')",
    ),
]


@pytest.mark.parametrize(("fields", "field", "limit"), CASES)
def test_bad_input_over_grpc(server: Server, fields: dict[str, Any], field: str, limit: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ask_grpc(server.grpc, **fields)
    assert field in str(caught.value)
    assert limit in str(caught.value)


@pytest.mark.parametrize(("fields", "field", "limit"), CASES)
def test_bad_input_over_http_infer(server: Server, fields: dict[str, Any], field: str, limit: str) -> None:
    with httpclient.InferenceServerClient(server.http) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("ensemble_unary", make_inputs(httpclient, fields))
    assert field in str(caught.value)
    assert limit in str(caught.value)
    assert caught.value.status() == "400"


@pytest.mark.parametrize(("fields", "field", "limit"), CASES)
def test_bad_input_over_http_generate(server: Server, fields: dict[str, Any], field: str, limit: str) -> None:
    if isinstance(fields.get("text_input"), bytes):
        payload: Any = b'{"text_input": "\xff\xfe", "max_tokens": 4}'
    else:
        payload = fields
    for path in (GENERATE, GENERATE + "_stream"):
        status, body = post(server, path, payload)
        assert status == 400
        assert field in body
        assert limit in body


def test_bad_input_an_unknown_field_is_named(server: Server) -> None:
    status, body = post(server, GENERATE, {**GOOD, "max_tokns": 4})
    assert (status, "max_tokns" in body) == (400, True)
    with pytest.raises(InferenceServerException, match="max_tokns"):
        ask_grpc(server.grpc, **GOOD, max_tokns=4)
    with httpclient.InferenceServerClient(server.http) as client:
        with pytest.raises(InferenceServerException, match="max_tokns"):
            client.infer("ensemble_unary", make_inputs(httpclient, {**GOOD, "max_tokns": 4}))


def test_bad_input_no_input_at_all_is_refused(server: Server) -> None:
    status, body = post(server, GENERATE, {})
    assert (status, "0 inputs" in body) == (400, True)


def test_bad_input_a_wrong_dtype_is_named(server: Server) -> None:
    wrong = np.array([[1.5]], np.float32)
    for module, url in ((grpcclient, server.grpc), (httpclient, server.http)):
        tensor = module.InferInput("max_tokens", [1, 1], "FP32")
        tensor.set_data_from_numpy(wrong)
        inputs = [*make_inputs(module, {"text_input": "hello"}), tensor]
        client = module.InferenceServerClient(url)
        with pytest.raises(InferenceServerException, match="max_tokens"):
            client.infer("ensemble_unary", inputs)
        client.close()


def test_bad_input_a_wrong_json_type_is_refused_by_triton_itself(server: Server) -> None:
    """Triton parses generate's JSON before any model sees it, and its message does not name the field."""
    status, body = post(server, GENERATE, {"text_input": "hello", "max_tokens": "four"})
    assert status in (400, 500)
    assert "error" in body


def test_bad_input_a_wrong_shape_is_refused(server: Server) -> None:
    tensor = grpcclient.InferInput("text_input", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"a"], [b"b"]], np.object_))
    limit = grpcclient.InferInput("max_tokens", [2, 1], "INT32")
    limit.set_data_from_numpy(np.array([[4], [4]], np.int32))
    with grpcclient.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException, match="batch"):
            client.infer("ensemble_unary", [tensor, limit])
