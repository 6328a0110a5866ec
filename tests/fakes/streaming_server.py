"""A server that streams tokens at known moments, over Triton's generate_stream and as an OpenAI-compatible server.

Runs on a thread of the test, with an event loop of its own. It says what it was asked, and can stall: nothing is sent
from `stall_at` on, for `stall_seconds`, as if the whole server stood still.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

NUM_INPUT_TOKENS = 17
METRICS = """\
# TYPE nv_llm_requests_total counter
nv_llm_requests_total{{model="core"}} {requests}
# TYPE nv_llm_step_time_model gauge
nv_llm_step_time_model{{coefficient="base"}} 0.002
"""


@dataclass
class Double:
    """How the server behaves, and what it was asked.

    Args:
        first_token_seconds: from a request to its first token.
        token_seconds: between tokens.
        refuse_every: each so-manieth request is refused; 0 refuses none.
        stall_after: seconds from the first request until the stall begins; None for no stall.
        stall_seconds: that it lasts.
        break_streams: end every stream after its first token, without its end.
    """

    first_token_seconds: float = 0.1
    token_seconds: float = 0.02
    refuse_every: int = 0
    stall_after: float | None = None
    stall_seconds: float = 0.0
    break_streams: bool = False
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def stalled_until(self) -> float:
        """The end of the stall, if it is one now; otherwise now."""
        now = time.perf_counter()
        if self.stall_after is None or not self.arrivals:
            return now
        begin = self.arrivals[0] + self.stall_after
        return begin + self.stall_seconds if begin <= now < begin + self.stall_seconds else now

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.decode().split(" ", 2)
                lengths = [line[15:] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0])) if lengths else b""
                if not await self._answer(writer, method, path, body):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> bool:
        if method == "GET":
            listing = json.dumps({"data": [{"id": "double"}]})
            text = METRICS.format(requests=len(self.bodies)) if path == "/metrics" else listing
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text.encode())
            return True
        self.arrivals.append(time.perf_counter())
        asked = json.loads(body)
        self.bodies.append(asked)
        if self.refuse_every and len(self.bodies) % self.refuse_every == 0:
            refusal = json.dumps({"error": f"[UNAVAILABLE] {len(self.bodies)} requests wait"}).encode()
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(refusal) + refusal)
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        began, count = time.perf_counter(), asked["max_tokens"]
        for index in range(count):
            due = began + self.first_token_seconds + index * self.token_seconds
            while (late := max(due, self.stalled_until) - time.perf_counter()) > 0:
                await asyncio.sleep(late)
            for event in self._events(path, index == count - 1, count):
                data = f"data: {event}\n\n".encode()
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            if self.break_streams:
                return False
        writer.write(b"0\r\n\r\n")
        return True

    @staticmethod
    def _events(path: str, is_last: bool, count: int) -> list[str]:
        if path.startswith("/v2/"):
            event: dict[str, Any] = {"text_output": "a", "output_ids": 7}
            if is_last:
                event |= {"finish_reason": "length", "num_input_tokens": NUM_INPUT_TOKENS, "num_output_tokens": count}
            return [json.dumps(event)]
        delta = {"delta": {"content": "a"}} if "chat" in path else {"text": "a"}
        chunk = json.dumps({"choices": [{**delta, "finish_reason": "length" if is_last else None}]})
        if not is_last:
            return [chunk]
        usage = {"prompt_tokens": NUM_INPUT_TOKENS, "completion_tokens": count}
        return [chunk, json.dumps({"choices": [], "usage": usage}), "[DONE]"]


@contextmanager
def streaming(double: Double) -> Iterator[Double]:
    """The server, listening."""
    loop = asyncio.new_event_loop()
    listening = threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(double.serve, "127.0.0.1", 0)
        double.port = server.sockets[0].getsockname()[1]
        listening.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert listening.wait(60)
        yield double
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
