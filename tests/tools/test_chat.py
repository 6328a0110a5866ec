"""`trident chat` against a gRPC server that answers as Triton does."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.fakes.deployment import command

SLOW = "slow"


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Echoes the last message word by word; records what it was asked."""

    requests: list[pb.ModelInferRequest] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802 (the protocol's name)
        return pb.ModelReadyResponse(ready=request.name == "ensemble")

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            self.requests.append(request)
            question = self.messages(-1)[-1]["content"]
            if question == "fail":
                yield pb.ModelStreamInferResponse(error_message="max_tokens: must be at least 1, not 0")
                continue
            if question == SLOW:
                context.add_callback(self.cancelled.set)
                yield _response("wait", "")
                self.cancelled.wait(60)
                return
            words = [f"{word} " for word in question.split()]
            for count, word in enumerate(words, 1):
                yield _response(word, "eos" if count == len(words) else "")
                time.sleep(0.02)

    def messages(self, request: int) -> list[dict[str, str]]:
        """The conversation that a request carried."""
        messages: list[dict[str, str]] = json.loads(self.tensors(request)["messages"][4:])
        return messages

    def tensors(self, request: int) -> dict[str, bytes]:
        """Raw contents by name."""
        asked = self.requests[request]
        return {spec.name: raw for spec, raw in zip(asked.inputs, asked.raw_input_contents, strict=True)}


def _response(text: str, finish_reason: str) -> pb.ModelStreamInferResponse:
    """One response of one token; the reason comes with the last alone."""
    answer = pb.ModelInferResponse(model_name="ensemble", model_version="1")
    outputs = [("text_output", "BYTES", _bytes(text.encode())), ("output_ids", "INT32", np.int32(7).tobytes())]
    if finish_reason:
        outputs.append(("finish_reason", "BYTES", _bytes(finish_reason.encode())))
    for name, dtype, raw in outputs:
        answer.outputs.append(pb.ModelInferResponse.InferOutputTensor(name=name, datatype=dtype, shape=[1, 1]))
        answer.raw_output_contents.append(raw)
    return pb.ModelStreamInferResponse(infer_response=answer)


def _bytes(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text


@pytest.fixture
def triton() -> Iterator[tuple[FakeTriton, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    fake = FakeTriton()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield fake, f"127.0.0.1:{port}"
    fake.cancelled.set()
    server.stop(0)


def chat(url: str, *lines: str, options: tuple[object, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A conversation through a pipe."""
    return subprocess.run(
        command("chat", "--url", url, *options),
        input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_chat_a_pipe_gets_the_answers_alone(triton: tuple[FakeTriton, str]) -> None:
    fake, url = triton
    result = chat(url, "one two three", "", "four", options=("--system", "Be brief.", "--max-tokens", 7))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "one two three \nfour \n"
    assert "[3 tokens, first after " in result.stderr
    assert "tokens/s]" in result.stderr
    assert fake.messages(0) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two three"},
    ]
    assert [message["content"] for message in fake.messages(1)] == [
        "Be brief.",
        "one two three",
        "one two three ",
        "four",
    ]
    raw = fake.tensors(0)
    assert raw["max_tokens"] == np.int32(7).tobytes()
    assert raw["stream"] == b"\x01"
    assert "temperature" not in raw
    shapes = {spec.name: (spec.datatype, list(spec.shape)) for spec in fake.requests[0].inputs}
    assert shapes == {"messages": ("BYTES", [1, 1]), "stream": ("BOOL", [1, 1]), "max_tokens": ("INT32", [1, 1])}


def test_chat_reset_forgets_and_exit_leaves(triton: tuple[FakeTriton, str]) -> None:
    fake, url = triton
    result = chat(url, "one", "/reset", "two", "/help", "/exit", "three", options=("--temperature", "0.5"))
    assert result.returncode == 0, result.stderr
    assert len(fake.requests) == 2
    assert fake.messages(1) == [{"role": "user", "content": "two"}]
    assert fake.tensors(0)["temperature"] == np.float32(0.5).tobytes()
    assert "/help: no such command" in result.stderr


def test_chat_an_error_is_one_line_and_the_conversation_goes_on(triton: tuple[FakeTriton, str]) -> None:
    fake, url = triton
    result = chat(url, "fail", "on")
    assert result.returncode == 0
    assert "error: max_tokens: must be at least 1, not 0\n" in result.stderr
    assert result.stdout == "on \n"
    assert fake.messages(1) == [{"role": "user", "content": "on"}]


def test_chat_control_characters_do_not_reach_the_terminal(triton: tuple[FakeTriton, str]) -> None:
    _, url = triton
    assert chat(url, "\x1b[2Jgrüße\x07\x9b1m").stdout == "[2Jgrüße1m \n"


def test_chat_ctrl_c_cancels_the_answer_only(triton: tuple[FakeTriton, str]) -> None:
    fake, url = triton
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        command("chat", "--url", url), stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 4096)
        seen = seen.partition(text)[2]

    try:
        read_until(b"> ")
        os.write(terminal, f"{SLOW}\n".encode())
        read_until(b"wait")
        process.send_signal(signal.SIGINT)
        read_until(b"cancelled]")
        read_until(b"> ")
        assert fake.cancelled.wait(60)
        os.write(terminal, b"again please\n")
        read_until(b"[2 tokens")
        read_until(b"> ")
        assert [message["content"] for message in fake.messages(1)] == [SLOW, "wait", "again please"]
        os.write(terminal, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_chat_no_server_and_no_model_are_said_at_the_start(triton: tuple[FakeTriton, str]) -> None:
    _, url = triton
    refused = chat("127.0.0.1:1", "hello")
    assert refused.returncode == 1
    assert "no server answers at 127.0.0.1:1" in refused.stderr
    assert refused.stderr.count("\n") == 1
    unknown = chat(url, "hello", options=("--model", "other"))
    assert unknown.returncode == 1
    assert "does not serve a model 'other'" in unknown.stderr
