"""The table of docs/errors.md, cell by cell, against a running server, which at last is killed and drained."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import events, grpc_stream, make_inputs
from tests.e2e.server import Server, get, post, serve, until

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
WAYS = ("generate", "generate_stream", "infer, HTTP", "infer, gRPC", "gRPC stream")
GOOD: dict[str, Any] = {"text_input": "hello", "max_tokens": 4, "temperature": 0.0}
NO_GUIDE = {"guided_decoding_guide_type": "choice", "guided_decoding_guide": "[]"}
LONG: dict[str, Any] = {"text_input": "on and on", "max_tokens": 3500, "ignore_eos": True}
NUM_PLACES = 2
NUM_WAITING = 4


class Outcome(NamedTuple):
    """What a client got: as the table writes it, and the error's text."""

    seen: str
    text: str = ""


class Row(NamedTuple):
    """One row of the table."""

    situation: str
    cells: tuple[str, ...]
    says: tuple[str, ...]


def read_table() -> list[Row]:
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text[text.index("| situation |") :].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    assert [cell.replace("`", "") for cell in rows[0][1:6]] == list(WAYS)
    return [Row(row[0].replace("`", ""), tuple(row[1:6]), tuple(re.findall("`([^`]+)`", row[6]))) for row in rows[1:]]


class Client:
    """Sends one request each way the table has, and says what came."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def generate(self, body: Any, model: str = "ensemble") -> Outcome:
        try:
            status, text = post(self.server, f"/v2/models/{model}/generate", body)
        except ConnectionError:
            return Outcome("cut off")
        error = json.loads(text).get("error", "")
        return Outcome(f"{status}, an error in the body" if status == 200 and error else str(status), error)

    def generate_text(self) -> str:
        """A right answer; always the same."""
        status, text = post(self.server, "/v2/models/ensemble/generate", GOOD)
        assert status == 200, text
        answer: str = json.loads(text)["text_output"]
        return answer

    def generate_stream(self, body: Any, model: str = "ensemble") -> Outcome:
        try:
            status, text = post(self.server, f"/v2/models/{model}/generate_stream", body)
        except (http.client.IncompleteRead, ConnectionError):
            return Outcome("200, then cut off")
        errors = [event.get("error", "") for event in events(text) or [json.loads(text)]]
        assert not any(errors[:-1])
        return Outcome(f"{status}, then an error event" if status == 200 and errors[-1] else str(status), errors[-1])

    def infer_http(self, inputs: Any, model: str = "ensemble_unary", request_id: str = "") -> Outcome:
        if isinstance(inputs, bytes):
            status, text = post(self.server, f"/v2/models/{model}/infer", inputs)
            return Outcome(str(status), json.loads(text)["error"])
        with httpclient.InferenceServerClient(self.server.http, network_timeout=60) as client:
            try:
                client.infer(model, inputs(httpclient), request_id=request_id)
            except InferenceServerException as error:
                return Outcome(error.status(), error.message())
            except (HTTPConnectionClosed, ConnectionError):
                return Outcome("cut off")
        return Outcome("200")

    def infer_grpc(self, inputs: Any, model: str = "ensemble_unary", request_id: str = "") -> Outcome:
        with grpcclient.InferenceServerClient(self.server.grpc) as client:
            try:
                client.infer(model, inputs(grpcclient), request_id=request_id, client_timeout=60)
            except InferenceServerException as error:
                return Outcome(error.status().removeprefix("StatusCode."), error.message())
        return Outcome("OK")

    def grpc_stream(self, inputs: Any, model: str = "ensemble", request_id: str = "") -> Outcome:
        num_responses = 0
        try:
            with grpc_stream(self.server.grpc, inputs(grpcclient), model, request_id) as results:
                for _ in results:
                    num_responses += 1
        except InferenceServerException as error:
            is_late = num_responses and error.status() is None
            return Outcome("responses, then an error" if is_late else "error", error.message())
        return Outcome("OK")

    def each_way(self, fields: dict[str, Any], ways: tuple[str, ...] = WAYS) -> dict[str, Outcome]:
        """The same fields each way, one after another."""
        calls = self.calls(fields)
        return {way: calls[way]() for way in ways}

    def calls(self, fields: dict[str, Any], request_id: str = "") -> dict[str, Callable[[], Outcome]]:
        body = {**fields, "id": request_id} if request_id else fields

        def inputs(module: Any) -> Any:
            return make_inputs(module, fields)

        return {
            "generate": lambda: self.generate(body),
            "generate_stream": lambda: self.generate_stream(body),
            "infer, HTTP": lambda: self.infer_http(inputs, request_id=request_id),
            "infer, gRPC": lambda: self.infer_grpc(inputs, request_id=request_id),
            "gRPC stream": lambda: self.grpc_stream(inputs, request_id=request_id),
        }


Outcomes = dict[str, Outcome]
HTTP = WAYS[:2]
SITUATIONS: dict[str, Callable[[Client], Outcomes]] = {}


def situation(name: str) -> Callable[[Callable[[Client], Outcomes]], Callable[[Client], Outcomes]]:
    """Name what brings a row about."""

    def enter(function: Callable[[Client], Outcomes]) -> Callable[[Client], Outcomes]:
        SITUATIONS[name] = function
        return function

    return enter


def sent(name: str, fields: dict[str, Any], ways: tuple[str, ...] = WAYS) -> None:
    """A row that only takes certain fields."""
    situation(name)(lambda client: client.each_way(fields, ways))


sent("all is well", GOOD)
sent("stream is false or missing", {**GOOD, "stream": False})
sent("messages as a list, not as a text that holds one", {"messages": [{"role": "user", "content": "x"}]}, HTTP)
sent("an integer beyond 32 bits", {**GOOD, "max_tokens": 2**32 + 4}, HTTP)
sent("a field that nobody knows", {**GOOD, "max_tokns": 4})
sent("a field that nobody knows, an object", {**GOOD, "max_tokns": {"most": 4}}, HTTP)
sent("no input at all", {})
sent("max_tokens is missing", {"text_input": "hello", "stop_words": ["e"]})
sent("preprocessing refuses a value", {"messages": "[]", "max_tokens": 4})
sent("the core refuses a value", {**GOOD, "top_p": 2.0})
sent("prompt and output are longer than the context", {**GOOD, "max_tokens": 1_000_000})
sent("a guide that nothing can follow", {**GOOD, **NO_GUIDE})
sent("stream where there is one answer", {**GOOD, "stream": True, "ignore_eos": True}, (WAYS[0], *WAYS[2:4]))
sent("timeout_ms is over before the first response", {**LONG, "timeout_ms": 150})


@situation("JSON that cannot be parsed")
def _malformed(client: Client) -> Outcomes:
    body = b'{"text_input": "hello", '
    return {
        "generate": client.generate(body),
        "generate_stream": client.generate_stream(body),
        "infer, HTTP": client.infer_http(body),
    }


@situation("a value of the wrong JSON type")
def _wrong_type(client: Client) -> Outcomes:
    tensor = {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": ["four"]}
    outcomes = client.each_way({**GOOD, "max_tokens": "four"}, HTTP)
    for wrong in ({"max_tokens": 4.5}, {"seed": -1}, {"seed": None}, {"text_input": 5}, {"stop_token_ids": [1, "x"]}):
        assert client.each_way({**GOOD, **wrong}, HTTP).keys() == outcomes.keys()
        assert {seen for seen, _ in client.each_way({**GOOD, **wrong}, HTTP).values()} == {"500"}
    return {**outcomes, "infer, HTTP": client.infer_http(json.dumps({"inputs": [tensor]}).encode())}


@situation("a tensor of the wrong data type")
def _wrong_dtype(client: Client) -> Outcomes:
    def inputs(module: Any) -> Any:
        tensor = module.InferInput("max_tokens", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[4.0]], np.float32))
        return [*make_inputs(module, {"text_input": "hello"}), tensor]

    return {
        "infer, HTTP": client.infer_http(inputs),
        "infer, gRPC": client.infer_grpc(inputs),
        "gRPC stream": client.grpc_stream(inputs),
    }


@situation("a model that nobody knows")
def _unknown_model(client: Client) -> Outcomes:
    def inputs(module: Any) -> Any:
        return make_inputs(module, GOOD)

    return {
        "generate": client.generate(GOOD, "nobody"),
        "generate_stream": client.generate_stream(GOOD, "nobody"),
        "infer, HTTP": client.infer_http(inputs, "nobody"),
        "infer, gRPC": client.infer_grpc(inputs, "nobody"),
        "gRPC stream": client.grpc_stream(inputs, "nobody"),
    }


@situation("infer of ensemble, which may stream")
def _infer_of_ensemble(client: Client) -> Outcomes:
    def inputs(module: Any) -> Any:
        return make_inputs(module, GOOD)

    return {
        "infer, HTTP": client.infer_http(inputs, "ensemble"),
        "infer, gRPC": client.infer_grpc(inputs, "ensemble"),
    }


@situation("timeout_ms is over in the middle of a stream")
def _late_timeout(client: Client) -> Outcomes:
    fields = {**LONG, "stream": True, "timeout_ms": 2000}
    return client.each_way(fields, ("generate_stream", "gRPC stream"))


@contextmanager
def _busy(client: Client, num_requests: int) -> Iterator[list[Future[Outcome]]]:
    """So many streams that run or wait, until the block is left; then they are ended."""
    with ThreadPoolExecutor(num_requests) as pool:
        running = [
            pool.submit(client.calls({**LONG, "stream": True}, f"busy {number}")["gRPC stream"])
            for number in range(num_requests)
        ]
        try:
            until(lambda: client.server.num_active == num_requests, 60, "the requests to be there")
            yield running
        finally:
            for number in range(num_requests):
                with grpcclient.InferenceServerClient(client.server.grpc) as stopper:
                    inputs = make_inputs(grpcclient, {"stop": True, "max_tokens": 1})
                    stopper.infer("ensemble_unary", inputs, request_id=f"busy {number}", client_timeout=60)


@situation("the queue is full")
def _full(client: Client) -> Outcomes:
    with _busy(client, NUM_PLACES + NUM_WAITING):
        return client.each_way(GOOD)


@situation("ended by a request with stop")
def _stopped(client: Client) -> Outcomes:
    outcomes: Outcomes = {}
    stop = make_inputs(grpcclient, {"stop": True, "max_tokens": 1})
    for way, call in client.calls(LONG, "stop me").items():
        with ThreadPoolExecutor(1) as pool, grpcclient.InferenceServerClient(client.server.grpc) as stopper:
            running = pool.submit(call)
            until(lambda: client.server.num_active == 1, 60, "the request to be there")
            stopper.infer("ensemble_unary", stop, request_id="stop me", client_timeout=60)
            outcomes[way] = running.result(60)
            until(lambda: client.server.num_active == 0, 60, "the request to have gone")
    return outcomes


@situation("the core's process is killed")
def _killed(client: Client) -> Outcomes:
    server = client.server
    before = client.generate_text()
    calls = client.calls(LONG)
    with ThreadPoolExecutor(len(calls)) as pool:
        num_steps = server.num_steps
        streaming = client.calls({**LONG, "stream": True})["generate_stream"]
        running = {"generate_stream": pool.submit(streaming)}
        until(lambda: server.num_steps > num_steps + 10, 60, "the stream to have begun")
        running |= {way: pool.submit(call) for way, call in calls.items() if way not in running}
        until(lambda: server.num_active == len(calls), 60, "the requests to be there")
        victim = _core_of(server)
        maps = Path(f"/proc/{victim}/maps").read_text(encoding="utf-8").split()
        memory = {Path(word) for word in maps if word.startswith("/dev/shm/")}  # noqa: S108
        assert any("trident-" in str(path) for path in memory)
        os.kill(victim, signal.SIGKILL)
        outcomes = {way: outcome.result(60) for way, outcome in running.items()}
    until(lambda: "Ready again after" in _log(server), 300, "the server to be up again")
    assert re.search(rf"model 'core', .*\(pid {victim}\) died \(killed by SIGKILL\)", _log(server))
    assert "Starting it again in 1 s." in _log(server)
    assert client.generate_text() == before
    assert not any(path.exists() for path in memory)
    until(lambda: server.num_active == 0, 60, "the request to have gone")
    return outcomes


@situation("the server drains")
def _draining(client: Client) -> Outcomes:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.calls({**LONG, "stream": True})["gRPC stream"])
        until(lambda: client.server.num_active == 1, 60, "a request to be there")
        client.server.process.send_signal(signal.SIGTERM)
        # Whoever balances loads sends nothing more here, and what is on its way ends well.
        until(lambda: get(client.server, "/v2/health/ready") == 400, 60, "the server to say that it is not ready")
        # Not before: a balancer must be able to see that the server is not ready while it still serves.
        until(lambda: "1 requests in flight" in _log(client.server), 60, "the server to refuse")
        outcomes = client.each_way(GOOD)
        assert get(client.server, "/v2/health/live") == 200
        assert running.result(60) == Outcome("OK")
    assert client.server.process.wait(60) == 0
    return outcomes


def _log(server: Server) -> str:
    return server.log.read_text(encoding="utf-8", errors="replace")


def _core_of(server: Server) -> int:
    """The process of the server's core."""
    (tritonserver,) = _pids(lambda words: f"--http-port={server.http_port}" in words)
    (core,) = _pids(lambda words: len(words) > 1 and "/core/1/" in words[1], parent=tritonserver)
    return core


def _pids(wanted: Callable[[list[str]], bool], parent: int | None = None) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            its_parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if wanted(words) and parent in (None, its_parent):
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def client(narrow_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server with few places and a short queue, which is started again when it dies."""
    log = tmp_path_factory.mktemp("errors") / "log"
    with serve(narrow_repository, log, "--max-queue-size", str(NUM_WAITING), "--restart") as server:
        yield Client(server)


def test_errors_the_table_and_the_situations_are_the_same() -> None:
    assert {row.situation for row in read_table()} == set(SITUATIONS)


def test_errors_nobody_else_controls_the_models(client: Client) -> None:
    status, text = post(client.server, "/v2/repository/models/core/unload", {})
    assert (status, "restricted" in text) == (403, True)
    with grpcclient.InferenceServerClient(client.server.grpc) as stranger:
        with pytest.raises(InferenceServerException, match="restricted"):
            stranger.unload_model("core")
    assert client.generate_text()


@pytest.mark.parametrize("row", read_table(), ids=lambda row: row.situation)
def test_errors_row(row: Row, client: Client) -> None:
    outcomes = SITUATIONS[row.situation](client)
    assert tuple(outcomes[way].seen if way in outcomes else "–" for way in WAYS) == row.cells
    for outcome in outcomes.values():
        assert not row.says or any(text in outcome.text for text in row.says), outcome
