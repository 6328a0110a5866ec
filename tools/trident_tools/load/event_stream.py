"""Server-sent events over HTTP, read as they come.

Owns the connection and the framing of events. Import it in a process that runs greenlets: waiting lets others run.
Never knows the protocol above.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import gevent.ssl
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketPoolResponse

from trident_ensemble.contract.errors import ServerError
from trident_tools.load.target import FailedRequestError

_LIVE_TIMEOUT_S = 5.0
#: Seconds without a byte after which a request fails; the grace of a stage ends it much earlier.
_SILENCE_TIMEOUT_S = 24 * 3600.0
_BLOCK_BYTES = 64 * 1024
_MAX_MESSAGE_BYTES = 64 * 1024
_BROKEN = (OSError, HTTPParseError, gevent.ssl.SSLError)


class EventStreams:
    """One connection whose requests, one at a time, are answered with events.

    Args:
        url: the URL of the server; paths are added to it.
    """

    def __init__(self, url: str) -> None:
        self._base = urlsplit(url).path.rstrip("/")
        self._connection = _connect(url, _SILENCE_TIMEOUT_S)

    def post(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """Send a request; yield the data of each event until the server ends the answer.

        Raises:
            FailedRequestError: the server refuses the request, or the connection breaks.
        """
        payload = json.dumps(body).encode()
        try:
            with self._send(self._base + path, payload) as response:
                if response.status_code != HTTPStatus.OK:
                    raise FailedRequestError(_refusal(response.status_code, response.read(_MAX_MESSAGE_BYTES)))
                while line := response.readline(b"\n"):
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
        except _BROKEN as error:
            raise FailedRequestError(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _send(self, path: str, payload: bytes) -> HTTPSocketPoolResponse:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            return self._connection.post(path, payload, headers)
        except HTTPConnectionClosed:
            # The server had closed the idle connection; no byte of an answer has been received.
            return self._connection.post(path, payload, headers)


def get(url: str, path: str) -> bytes:
    """Return the body of a small answer to a GET request.

    Raises:
        ServerError: no server answers, or the status is not 200.
    """
    with closing(_connect(url, _LIVE_TIMEOUT_S)) as connection:
        try:
            response = connection.get(urlsplit(url).path.rstrip("/") + path)
            body = bytes(response.read())
        except _BROKEN as error:
            raise ServerError(f"no server answers at {url} ({error}); start one with `trident serve`") from None
    if response.status_code != HTTPStatus.OK:
        raise ServerError(f"{url}{path}: {_refusal(response.status_code, body)}")
    return body


def error_message(answer: Any) -> str | None:
    """Return the message of an answer that reports an error, in any of the forms that servers use; None otherwise."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        error = error.get("message", error)
    if error is None and isinstance(answer, dict):
        error = answer.get("detail")
    return None if error is None else " ".join(str(error).split())


def _connect(url: str, timeout_s: float) -> HTTPClient:
    return HTTPClient.from_url(
        url, block_size=_BLOCK_BYTES, connection_timeout=_LIVE_TIMEOUT_S, network_timeout=timeout_s
    )


def _refusal(status: int, body: bytes) -> str:
    """Return status and message of a refusal; the body itself where it is not valid JSON."""
    try:
        message = error_message(json.loads(body))
    except ValueError:
        message = None
    return f"[{status}] {message or ' '.join(body.decode('utf-8', 'replace').split())}"
