"""A tritonserver as far as the gateway sees it: HTTP, with scripted answers and faults, and a record of what it was
asked.

It runs on the event loop of the test (`async with FakeTriton(...)`), or on a thread (`with on_thread(fake)`) or as a
process (`python -m tests.fakes.triton_http PORT METRICS_PORT GAP_S`). The forms of its answers are copied from
tritonserver 2.51: `generate_stream` writes each response as one chunk, and the last one together with the end; a
refusal is status 400 with one event. A request with `stop` ends the running ones of its id and tenant. Closing the
connection of a stream ends it; a request that does not stream goes on.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.ports import free_ports
from trident_ensemble.contract.layout import DRAINING
from trident_ensemble.contract.model_card import PARAMETER, ModelCard, render_card
from trident_gateway.settings import ServerAddress

Event = dict[str, Any]


@dataclass
class Script:
    """How one request is answered.

    Args:
        events: responses; `id`, `model_name` and `model_version` are added. One with the key `error` is the last.
        status: of the HTTP answer.
        gap_s: seconds before each event.
        gate: awaited before the first event, if it is there.
        gates: awaited before other events, by their index.
        hang_after: sends nothing more after so many events, if there are so many, until it is stopped or left.
        break_after: cuts the connection after so many events.
        pieces: cuts what is sent into pieces of this many bytes; 0 for one piece an event.
        cancelled: what the last response has, beside its reason, when the request is stopped.
    """

    events: Sequence[Event]
    status: int = 200
    gap_s: float = 0.0
    gate: asyncio.Event | None = None
    gates: Mapping[int, asyncio.Event] = field(default_factory=dict)
    hang_after: int | None = None
    break_after: int | None = None
    pieces: int = 0
    cancelled: Event = field(default_factory=dict)


def tokens(request: Mapping[str, Any]) -> Script:
    """Answer with `max_tokens` words ` t0 t1 ...`, one an event if a stream is asked for, for each sequence."""
    count, sequences = int(request.get("max_tokens", 4)), int(request.get("num_return_sequences", 1))
    words = [f" t{index}" for index in range(count)]
    last: Event = {
        "finish_reason": "length", "stop_reason": "", "num_input_tokens": 3, "num_cached_tokens": 0,
        "num_output_tokens": count, "sequence_length": count, "used_seed": 11978117843578356614, "batch_index": 0,
    }  # fmt: skip
    if not request.get("stream"):
        return Script([
            {"text_output": "".join(words), "output_ids": list(range(count)), "sequence_index": row, **last}
            for row in range(sequences)
        ])  # fmt: skip
    events: list[Event] = []
    for index, word in enumerate(words):
        for row in range(sequences):
            event: Event = {"text_output": word, "output_ids": index}
            if sequences > 1 or index == count - 1:
                event["sequence_index"] = row
            if index == 0:
                event["num_input_tokens"] = 3
            events.append({**event, **(last | {"sequence_length": 1} if index == count - 1 else {})})
    return Script(events)


def refusal(message: str, status: int = 400) -> Script:
    """Refuse as the ensemble does, such as with `[INVALID_ARG] max_tokens: must be at least 1, not -4`."""
    return Script([{"error": f"in ensemble 'ensemble', {message}"}], status=status)


@dataclass(eq=False)
class Running:
    """A request that is being answered.

    Args:
        body: what was asked.
        headers: of the HTTP request, in lower case.
        stopped: set when it shall end.
    """

    body: dict[str, Any]
    headers: dict[str, str]
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    num_sent: int = 0


class FakeTriton:
    """One server.

    Args:
        cards: of the models that it serves; the ensemble of the first is `ensemble`, those of others have their names.
        answer: makes the script of each request.
        port, metrics_port: to listen at; 0 for any.
        host: the address to listen at.
    """

    def __init__(
        self,
        *cards: ModelCard,
        answer: Callable[[dict[str, Any]], Script] = tokens,
        port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.cards = list(cards) or [ModelCard("demo", 1_700_000_000, 4096, digest="d0")]
        self.answer = answer
        self.port, self.metrics_port = port, metrics_port
        #: Whether /v2/health/ready is 200.
        self.is_ready = True
        #: Whether it is not ready only because it loads something beside what it serves.
        self.only_loads = False
        #: Accepts connections and requests and answers nothing, as a process does that was stopped.
        self.is_silent = False
        #: Answers its metrics page with 503, and everything else as ever.
        self.hides_metrics = False
        #: Lets what asks its preprocessing wait.
        self.is_slow = False
        #: So many of the next requests with `stop` come before the request that they mean.
        self.num_deaf_stops = 0
        #: What the metrics page says of each core: waiting, active, fraction.
        self.figures: dict[str, tuple[float, float, float]] = {}
        #: Steps that each core has made; those of answers are added.
        self.num_steps = 0
        #: How preprocessing answers `generate`; what has the key `error` is a refusal.
        self.preprocess: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {"input_ids": [1, 2, 3]}
        #: Every request for text, in order, and every request with `stop`.
        self.requests: list[Running] = []
        self.stops: list[dict[str, Any]] = []
        #: Requests that are being answered now, and what has become of others: `done`, `cancelled`, `left`.
        self.running: set[Running] = set()
        self.ended: dict[str, int] = {"done": 0, "cancelled": 0, "left": 0}
        self.num_connections = 0
        self.num_accepted = 0
        #: Answered questions whether it is ready.
        self.num_probes = 0
        #: Bytes of a send buffer, to see a slow reader; None for the system's.
        self.send_buffer: int | None = None
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_listening(self) -> bool:
        """Whether it has been started, and not killed since."""
        return bool(self._servers)

    @property
    def address(self) -> ServerAddress:
        """The address of this server."""
        return ServerAddress(f"http://{self.host}:{self.port}", f"http://{self.host}:{self.metrics_port}")

    @property
    def name(self) -> str:
        """The name under which the gateway knows this server."""
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen; the ports stay the same when it is started again after a stop."""
        for attribute in ("port", "metrics_port"):
            # A port that the kernel gave might be another connection's by the time of the next start.
            port = getattr(self, attribute) or free_ports(1)[0]
            server = await asyncio.start_server(self._serve, self.host, port, backlog=4096)
            setattr(self, attribute, port)
            self._servers.append(server)

    async def kill(self) -> None:
        """End at once, as by SIGKILL: cut all connections and refuse new ones."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for writer in tuple(self._writers):
            writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.running.clear()

    async def __aenter__(self) -> FakeTriton:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.num_connections += 1
        self.num_accepted += 1
        if self.send_buffer is not None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
            writer.transport.set_write_buffer_limits(high=self.send_buffer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.split("\r\n")
                headers = {
                    name.strip().lower(): value.strip()
                    for name, colon, value in (header.partition(":") for header in rest)
                    if colon
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                while self.is_silent:
                    await asyncio.sleep(0.01)
                if not await self._dispatch(reader, writer, line, headers, body):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # asyncio would log what `kill` has cancelled
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            self.num_connections -= 1
            writer.close()

    async def _dispatch(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        line: str,
        headers: dict[str, str],
        body: bytes,
    ) -> bool:
        """Answer a request; return whether the connection stays."""
        method, path = line.split(" ")[:2]
        model, _, verb = unquote(path).removeprefix("/v2/models/").partition("/")
        config = self._configs().get(model)
        if config is not None and method == "POST" and verb in {"generate", "generate_stream"}:
            asked = json.loads(body)
            if "ensemble_scheduling" in config:
                return await self._generate(reader, writer, model, asked, headers, is_stream=verb != "generate")
            while self.is_slow:
                await asyncio.sleep(0.005)
            prepared = self.preprocess(asked)
            status, answer = 400 if "error" in prepared else 200, json.dumps(prepared)
        else:
            status, answer = self._look(path, model, config if verb == "config" else None)
            self.num_probes += path == "/v2/health/ready"
        _plain(writer, status, answer)
        return True

    def _look(self, path: str, model: str, config: Mapping[str, Any] | None) -> tuple[int, str]:
        """Return status and body of the answer to a question about the server."""
        if config is not None:
            return 200, json.dumps(config)
        pages = {
            "/v2/health/ready": (200 if self.is_ready else 400, ""),
            # Of a version that was to be loaded and could not be, Triton says that it is unavailable.
            f"/v2/models/{DRAINING}/versions/1/config": (404 if self.is_ready or self.only_loads else 503, ""),
            "/metrics": (503 if self.hides_metrics else 200, self._metrics()),
            "/v2/models/stats": (
                200, json.dumps({"model_stats": [{"name": name, "version": "1"} for name in self._configs()]}),
            ),
            # `trident serve` keeps the control of models, of which this is a part, to itself.
            "/v2/repository/index": (403, '{"error":"This API is restricted, expecting header \'trident-control\'"}'),
        }  # fmt: skip
        missing = json.dumps({"error": f"Request for unknown model: '{model}' is not found"})
        return pages.get(path, (404, missing))

    async def _generate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, asked: dict[str, Any],
        headers: dict[str, str], *, is_stream: bool,
    ) -> bool:  # fmt: skip
        common = {"id": asked.get("id", ""), "model_name": model, "model_version": "1"}
        if asked.get("stop"):
            self.stops.append(asked)
            for running in self.running if self.num_deaf_stops == 0 else ():
                if _name(running.body) == _name(asked):
                    running.stopped.set()
            self.num_deaf_stops = max(0, self.num_deaf_stops - 1)
            cancelled = {"finish_reason": "cancelled", "output_ids": [], "text_output": "", **common}
            if is_stream:
                _head(writer, 200)
                _chunk(writer, _event(cancelled), is_last=True)
            else:
                _plain(writer, 200, json.dumps(cancelled))
            return True
        running = Running(asked, headers)
        self.requests.append(running)
        self.running.add(running)
        # A client that leaves is noticed by its end of the connection, which sends nothing while it waits.
        watch = asyncio.get_running_loop().create_task(_left(reader))
        try:
            script = self.answer(asked)
            outcome = await self._play(writer, script, running, common, watch)
            self.ended[outcome] += 1
        finally:
            self.running.discard(running)
            watch.cancel()
        return outcome != "left" and (script.break_after is None)

    async def _play(
        self, writer: asyncio.StreamWriter, script: Script, running: Running, common: Event, left: asyncio.Task[None]
    ) -> str:
        """Answer as the script says; return what has become of it."""
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(running.stopped.wait())]
        if running.body.get("stream"):
            ends.append(left)
        try:
            is_whole = await self._send_events(writer, script, running, common, ends)
        except ConnectionError:
            return "left"
        finally:
            ends[0].cancel()
        if is_whole:
            return "done"
        if not running.stopped.is_set():
            return "left"
        if not running.num_sent:
            _head(writer, 200)
        final = {"finish_reason": "cancelled", "output_ids": [], "text_output": "", "num_output_tokens": 0}
        _chunk(writer, _event({**final, **script.cancelled, **common}), is_last=True)
        return "cancelled"

    async def _send_events(
        self, writer: asyncio.StreamWriter, script: Script, running: Running, common: Event,
        ends: list[asyncio.Future[Any]],
    ) -> bool:  # fmt: skip
        """Send what the script says; return whether all of it was sent before the request was ended."""
        if script.gate is not None:
            await _opened(script.gate, ends)
        count = len(script.events)
        hang_after = None if script.hang_after is None or script.hang_after > count else script.hang_after
        last = count - 1 if hang_after is None and script.break_after is None else -1
        for index in range(count + 1):
            if script.gap_s and index < count and not any(end.done() for end in ends):
                await asyncio.wait(ends, timeout=script.gap_s, return_when=asyncio.FIRST_COMPLETED)
            if index in script.gates:
                await _opened(script.gates[index], ends)
            if hang_after == index:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if script.break_after == index:
                writer.transport.abort()
                return True
            if index == count or any(end.done() for end in ends):
                return index == count and hang_after is None
            event = script.events[index]
            if not running.num_sent:
                _head(writer, script.status)
            await self._send(writer, script, event if "error" in event else {**event, **common}, is_last=index == last)
            running.num_sent += 1
            self.num_steps += 1
        return True

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, script: Script, event: Event, *, is_last: bool) -> None:
        if not script.pieces:
            _chunk(writer, _event(event), is_last=is_last)
            await writer.drain()
            return
        data = _event(event)
        for begin in range(0, len(data), script.pieces):
            piece = data[begin : begin + script.pieces]
            _chunk(writer, piece, is_last=is_last and begin + script.pieces >= len(data))
            await writer.drain()
            await asyncio.sleep(0)

    def _configs(self) -> dict[str, dict[str, Any]]:
        """Return the configuration of each model, as far as anybody reads it."""
        configs: dict[str, dict[str, Any]] = {}
        for index, card in enumerate(self.cards):
            prefix = "" if index == 0 else f"{card.name}_"
            ensemble = "ensemble" if index == 0 else card.name
            steps = [f"{prefix}{step}" for step in ("preprocessing", "core", "postprocessing")]
            configs[ensemble] = {
                "name": ensemble, "platform": "ensemble", "max_batch_size": 1,
                "parameters": {PARAMETER: {"string_value": render_card(card)}},
                "ensemble_scheduling": {"step": [{"model_name": step, "model_version": "-1"} for step in steps]},
            }  # fmt: skip
            for step in steps:
                configs[step] = {"name": step, "platform": "", "backend": "python", "parameters": {}}
        return configs

    def _metrics(self) -> str:
        lines = ["# HELP nv_inference_request_success Number of successful inference requests"]
        for name in self._configs():
            lines.append(f'nv_inference_request_success{{model="{name}",version="1"}} 0')
            if not name.endswith("core"):
                continue
            waiting, active, fraction = self.figures.get(name, (0, len(self.running), 0.0))
            for kind, value in (("waiting", waiting), ("active", active), ("max", 256)):
                lines.append(f'nv_trt_llm_request_metrics{{model="{name}",request_type="{kind}",version="1"}} {value}')
            labels = f'kv_cache_block_type="fraction",model="{name}",version="1"'
            lines.append(f"nv_trt_llm_kv_cache_block_metrics{{{labels}}} {fraction}")
            labels = f'general_type="iteration_counter",model="{name}",version="1"'
            lines.append(f"nv_trt_llm_general_metrics{{{labels}}} {self.num_steps}")
        return "\n".join(lines) + "\n"


def _name(body: Mapping[str, Any]) -> tuple[object, object]:
    return body.get("tenant", ""), body.get("id", "")


async def _left(reader: asyncio.StreamReader) -> None:
    """Wait until the client has closed its end; it sends nothing before it has its answer."""
    with suppress(ConnectionError):
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)


def _event(event: Event) -> bytes:
    text = json.dumps(dict(sorted(event.items())), ensure_ascii=False, separators=(",", ":"))
    return b"data: %b\n\n" % text.encode()


async def _opened(gate: asyncio.Event, ends: Sequence[asyncio.Future[Any]]) -> None:
    """Wait until a gate is open, or the request has ended."""
    waiting = asyncio.ensure_future(gate.wait())
    await asyncio.wait([waiting, *ends], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _head(writer: asyncio.StreamWriter, status: int) -> None:
    reason = {200: "OK", 400: "Bad Request"}.get(status, "Status")
    writer.write(
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
    )


def _chunk(writer: asyncio.StreamWriter, data: bytes, *, is_last: bool) -> None:
    writer.write(b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if is_last else b""))


def _plain(writer: asyncio.StreamWriter, status: int, body: str) -> None:
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}.get(status, "Status")
    data = body.encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(data)}\r\nContent-Type: application/json\r\n\r\n"
    writer.write(head.encode() + data)


@contextmanager
def on_thread(*fakes: FakeTriton) -> Iterator[None]:
    """Run servers on a thread with an event loop of their own, listening."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        for fake in fakes:
            asyncio.run_coroutine_threadsafe(fake.start(), loop).result(60)
        yield
    finally:
        for fake in fakes:
            asyncio.run_coroutine_threadsafe(fake.kill(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def _main() -> None:
    """Serve until killed, with one event each GAP_S seconds."""
    port, metrics_port, gap = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

    def paced(request: dict[str, Any]) -> Script:
        script = tokens(request)
        script.gap_s = gap
        return script

    async def run() -> None:
        async with FakeTriton(answer=paced, port=port, metrics_port=metrics_port):
            await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    _main()
