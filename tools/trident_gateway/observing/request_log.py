"""The record of one request, and the log that has one line of JSON for each.

Owns what may be known of a request after its end: ids, names, counts, times. Never holds anything that a client or a
model has written. Never makes a request wait: a thread writes, and what it cannot write in time is dropped and counted.
"""

from __future__ import annotations

import datetime
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

_MAX_WAITING = 10_000
_MAX_LINES_AT_ONCE = 500
_CLOSE_TIMEOUT_S = 2.0


@dataclass(slots=True)
class RequestRecord:
    """The facts about one request, filled in as it goes along, and written once at its end.

    Args:
        request_id: the one in the answer's `x-request-id`: the client's own if it is a valid one.
        route: the name of the endpoint, from a closed list.
        started_s: when the request's headers were there, in seconds since 1970.
        upstream_id: under which the server knows the request; random.
        key_id: of the key that was used, never the key.
        tenant: of the key.
        model: as the catalogue names it, never as the client did.
        status: of the answer; 499 if the client was gone before it began.
        is_error: the answer is an error, or has ended with one.
        error_code: a word from a closed list; "" without an error.
        is_stream: the answer is a stream of events.
        num_input_tokens: in the prompts.
        num_cached_tokens: of those, found in the prefix cache.
        num_output_tokens: of all answers to the request.
        ttft_s: seconds from the start to the first part of a stream; None where there was none.
        duration_s: seconds from the start to the end.
        finish_reasons: of the answers that have ended, as the client has read them.
        upstream: name of the server that answered.
        side: of that server, or of those that were to answer: `stable` or `canary`.
        fallback_from: the canary's model that was to answer and could not take the request; "" where there was none.
        client_gone: where the request was when its client left: `waiting` for the first part of a stream, `stream` or
            `plain`; "" if it did not leave.
    """

    request_id: str = ""
    route: str = ""
    started_s: float = 0.0
    upstream_id: str = ""
    key_id: str = ""
    tenant: str = ""
    model: str = ""
    status: int = 0
    is_error: bool = False
    error_code: str = ""
    is_stream: bool = False
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    ttft_s: float | None = None
    duration_s: float = 0.0
    finish_reasons: tuple[str, ...] = ()
    upstream: str = ""
    side: str = "stable"
    fallback_from: str = ""
    client_gone: str = ""


class Unbuffered(Protocol):
    """A file without a buffer, which would fail again when it is closed; one that blocks."""

    def write(self, data: bytes, /) -> int | None:
        """Write some of the data, at least a byte; return how much."""
        ...


class RequestLog:
    """Writes records to a file or a pipe.

    Args:
        file: what is written to, without a buffer of its own; the log does not close it.
        count_drop: is called for each record that was not written.
        max_waiting: records that may wait for a slow reader.
    """

    def __init__(self, file: Unbuffered, count_drop: Callable[[], None], max_waiting: int = _MAX_WAITING) -> None:
        self._file = file
        self._count_drop = count_drop
        self._is_torn = False
        self._lines: queue.Queue[bytes | None] = queue.Queue(max_waiting)
        self._writer = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._writer.start()

    def write(self, record: RequestRecord) -> None:
        """Have a record written soon, or drop it if too many wait."""
        try:
            self._lines.put_nowait(_line(record))
        except queue.Full:
            self._count_drop()

    def close(self) -> None:
        """Write what waits, unless that takes too long."""
        try:
            self._lines.put(None, timeout=_CLOSE_TIMEOUT_S)
        except queue.Full:
            return
        self._writer.join(_CLOSE_TIMEOUT_S)

    def _write(self) -> None:
        is_open = True
        while is_open:
            lines = [self._lines.get()]
            while len(lines) < _MAX_LINES_AT_ONCE and not self._lines.empty():
                lines.append(self._lines.get_nowait())
            is_open = lines[-1] is not None
            for _ in range(self._put([line for line in lines if line is not None])):
                self._count_drop()

    def _put(self, lines: list[bytes]) -> int:
        """Write lines; return how many were not written whole: to a pipe without a reader, or a full disk."""
        # What was written of a line that is not whole stays alone on its line.
        data = b"\n" * self._is_torn + b"".join(lines)
        num_written = 0
        try:
            while num_written < len(data):
                num_written += self._file.write(data[num_written:]) or 0
        except (OSError, ValueError):
            written = data[:num_written]
            num_whole = written.count(b"\n") - (self._is_torn and num_written > 0)
            self._is_torn = not written.endswith(b"\n") if written else self._is_torn
            return len(lines) - num_whole
        self._is_torn = False
        return 0


def _line(record: RequestRecord) -> bytes:
    time = datetime.datetime.fromtimestamp(record.started_s, datetime.timezone.utc)
    entry = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": record.request_id,
        "upstream_id": record.upstream_id,
        "key_id": record.key_id,
        "tenant": record.tenant,
        "route": record.route,
        "model": record.model,
        "status": record.status,
        "error": record.is_error,
        "code": record.error_code,
        "stream": record.is_stream,
        "input_tokens": record.num_input_tokens,
        "cached_tokens": record.num_cached_tokens,
        "output_tokens": record.num_output_tokens,
        "ttft_ms": None if record.ttft_s is None else round(record.ttft_s * 1e3, 1),
        "duration_ms": round(record.duration_s * 1e3, 1),
        "finish": record.finish_reasons[0] if record.finish_reasons else "",
        "upstream": record.upstream,
        "side": record.side,
        "fallback_from": record.fallback_from,
        "client_gone": record.client_gone,
    }
    return msgspec.json.encode(entry) + b"\n"
