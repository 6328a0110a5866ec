"""Requests of OpenAI's API, one at a time.

Owns the HTTP of it: the key, the time limit, the events of a stream. Never judges an answer.
"""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError

_PROBE_TIMEOUT_S = 5.0
_MAX_BYTES = 8 << 20
_EVENT = b"data:"
_DONE = b"[DONE]"


class NoAnswerError(Exception):
    """No answer, or one that is not HTTP, JSON or a stream of events."""


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    Args:
        status: of HTTP.
        headers: in lower case.
        body: its JSON; None for a stream.
        events: the JSON of each event before the end; empty for an answer that is no stream.
        is_whole: whether a stream ended with `[DONE]`.
    """

    status: int
    headers: dict[str, str]
    body: Any = None
    events: tuple[Any, ...] = ()
    is_whole: bool = False


class ApiClient:
    """A client of one address.

    Args:
        url: `http://HOST:PORT` or `https://HOST:PORT`, without a path.
        key: sent with each request; None for none.
        timeout_s: between two reads of an answer.

    Attributes:
        port: of the address; None for that of the scheme.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        try:
            parts = urlsplit(url)
            self._host, self.port = parts.hostname or "", parts.port
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not self._host or parts.path.rstrip("/") or parts.query:
            raise ConfigError(f"{url}: must be http://HOST:PORT or https://HOST:PORT")
        self._is_tls = parts.scheme == "https"
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s = timeout_s

    def is_ready(self) -> bool:
        """Return whether a gateway answers there, and has a model."""
        try:
            return self._ask("GET", "/health", None, _PROBE_TIMEOUT_S).status == http.client.OK
        except NoAnswerError:
            return False

    def get(self, path: str) -> Reply:
        """Return the answer to a question.

        Raises:
            NoAnswerError: there is none.
        """
        return self._ask("GET", path, None, self._timeout_s)

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        """Return the answer to a request; of a stream, all of it.

        Raises:
            NoAnswerError: there is none.
        """
        return self._ask("POST", path, body, self._timeout_s)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Reply:
        if self._is_tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self.port, timeout=timeout_s, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            content = answer.read(_MAX_BYTES)
            if not headers.get("content-type", "").startswith("text/event-stream"):
                return Reply(answer.status, headers, json.loads(content) if content else None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswerError(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        lines = [line.removeprefix(_EVENT).strip() for line in content.splitlines() if line.startswith(_EVENT)]
        is_whole = lines[-1:] == [_DONE]
        try:
            events = tuple(json.loads(line) for line in (lines[:-1] if is_whole else lines))
        except ValueError as error:
            raise NoAnswerError(f"an event is not JSON: {error}") from None
        return Reply(answer.status, headers, events=events, is_whole=is_whole)
