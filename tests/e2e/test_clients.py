"""The clients people have, against the running server."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import ask_grpc, events, make_inputs
from tests.e2e.server import Server, post

FIELDS: dict[str, Any] = {"text_input": "hello world", "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def expected(server: Server) -> tuple[str, list[int]]:
    answer = ask_grpc(server.grpc, **FIELDS)
    assert answer.num_chunks == answer.num_finals == 1
    assert (len(answer.output_ids), answer.finish_reason) == (12, "length")
    return answer.text, answer.output_ids


def test_clients_grpc_streaming(server: Server, expected: tuple[str, list[int]]) -> None:
    answer = ask_grpc(server.grpc, **FIELDS, stream=True)
    assert (answer.text, answer.output_ids) == expected
    assert answer.num_chunks > 1
    assert (answer.num_finals, answer.num_output_tokens) == (1, 12)


@pytest.mark.parametrize("module", [httpclient, grpcclient])
def test_clients_infer_over_http_and_grpc(server: Server, expected: tuple[str, list[int]], module: object) -> None:
    url = server.http if module is httpclient else server.grpc
    client = module.InferenceServerClient(url)  # type: ignore[attr-defined]
    result = client.infer("ensemble_unary", make_inputs(module, FIELDS), request_id="7")
    assert result.as_numpy("text_output")[0].decode() == expected[0]
    assert result.as_numpy("output_ids").reshape(-1).tolist() == expected[1]
    assert result.get_response()["id"] == "7" if module is httpclient else result.get_response().id == "7"
    with pytest.raises(InferenceServerException, match="ensemble"):
        client.infer("ensemble_unary", make_inputs(module, {**FIELDS, "stream": True}))
    client.close()


def test_clients_many_infers_at_once(server: Server, expected: tuple[str, list[int]]) -> None:
    def infer(_: int) -> list[int]:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            result = client.infer("ensemble_unary", make_inputs(grpcclient, FIELDS))
        ids: list[int] = result.as_numpy("output_ids").reshape(-1).tolist()
        return ids

    with ThreadPoolExecutor(100) as pool:
        assert all(ids == expected[1] for ids in pool.map(infer, range(200)))


def test_clients_generate(server: Server, expected: tuple[str, list[int]]) -> None:
    status, body = post(server, "/v2/models/ensemble/generate", FIELDS)
    reply = json.loads(body)
    assert (status, reply["text_output"], reply["output_ids"]) == (200, *expected)
    assert (reply["finish_reason"], reply["num_output_tokens"]) == ("length", 12)


def test_clients_generate_stream(server: Server, expected: tuple[str, list[int]]) -> None:
    status, body = post(server, "/v2/models/ensemble/generate_stream", {**FIELDS, "stream": True})
    chunks = [chunk for chunk in events(body) if "text_output" in chunk]
    assert status == 200
    assert "".join(chunk["text_output"] for chunk in chunks) == expected[0]
    assert chunks[-1]["finish_reason"] == "length"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_clients_curl(server: Server, expected: tuple[str, list[int]]) -> None:
    url = server.url("/v2/models/ensemble/generate")
    command = ["curl", "-sS", "--fail-with-body", url, "-d", json.dumps(FIELDS)]
    reply = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert reply["text_output"] == expected[0]


def test_clients_chat_messages(server: Server) -> None:
    messages = json.dumps([{"role": "user", "content": "hello"}])
    answer = ask_grpc(server.grpc, messages=messages, max_tokens=8, stream=True, ignore_eos=True)
    plain = ask_grpc(server.grpc, text_input="hello", max_tokens=8, stream=True, ignore_eos=True)
    assert answer.num_output_tokens == 8
    assert answer.num_input_tokens > plain.num_input_tokens, "the template adds its own tokens"


def test_clients_sampling_is_repeatable_by_seed(server: Server) -> None:
    def draw(seed: int) -> list[int]:
        return ask_grpc(server.grpc, **FIELDS, temperature=1.0, seed=seed).output_ids

    with ThreadPoolExecutor(8) as pool:
        draws = list(pool.map(draw, [1, 2, 3, 4, 1, 2, 3, 4]))
    assert draws[:4] == draws[4:]
    assert len({tuple(ids) for ids in draws}) == 4


def test_clients_the_core_alone_speaks_token_ids(server: Server, expected: tuple[str, list[int]]) -> None:
    """A client may bring its own tokenizer: the core is a model like any other."""
    answer = ask_grpc(server.grpc, **FIELDS)
    assert answer.output_ids == expected[1]
    config = httpclient.InferenceServerClient(server.http).get_model_config("core")
    assert config["model_transaction_policy"]["decoupled"] is True
