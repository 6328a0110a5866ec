"""A client of the endpoints, without HTTP between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.gateway_upstream import FakeRouter, Script
from trident_gateway.api.context import ApiContext
from trident_gateway.api.interface import Headers
from trident_gateway.api.openai_api import endpoints
from trident_gateway.callers import ANYBODY, Caller
from trident_gateway.errors import ApiError, AuthenticationError, error_event
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import NoSpan
from trident_gateway.settings import GatewaySettings
from trident_gateway.upstream.served_model import GenerateCall


class Request:
    """One request, whole."""

    def __init__(self, body: bytes, params: Mapping[str, str], headers: Mapping[str, str]) -> None:
        self._body = body
        self._headers = headers
        self.path_params = params
        self.record = RequestRecord()
        self.span = NoSpan()

    def header(self, name: str) -> str | None:
        """Return a header."""
        return self._headers.get(name)

    async def body(self) -> bytes:
        """Return the body."""
        return self._body


@dataclass
class Answer:
    """What a client has read."""

    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    num_sends: int = 0
    is_over: bool = False
    render_error: Callable[[ApiError], bytes] = error_event
    record: RequestRecord = field(default_factory=RequestRecord)

    def add_headers(self, headers: Headers) -> None:
        """Add headers."""
        assert not self.status, "headers must come before the answer"
        self.headers.update({name.decode(): value.decode() for name, value in headers})

    async def send_json(self, body: bytes, status: int = 200) -> None:
        """Take a whole answer."""
        assert not self.status
        self.status, self.body, self.is_over = status, body, True

    def expect_events(self, render_error: Callable[[ApiError], bytes] = error_event) -> None:
        """Take the way to write errors."""
        self.render_error = render_error

    async def send_events(self, events: bytes) -> None:
        """Take events."""
        assert events
        assert not self.is_over
        self.status, self.body, self.num_sends = 200, self.body + events, self.num_sends + 1

    async def end_events(self, events: bytes = b"") -> None:
        """Take the last events."""
        assert not self.is_over
        self.status, self.body, self.is_over = 200, self.body + events, True

    def fail(self, error: ApiError) -> None:
        """Take an error."""
        assert not self.is_over
        self.is_over = True
        if self.status:
            self.body += self.render_error(error)
        else:
            self.status, self.body = error.status, error.body()
            self.headers.update({name.decode(): value.decode() for name, value in error.headers})

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str | None, str | None]:
        """Status, type, code and param of an error."""
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}, error
        return self.status, error["type"], error["code"], error["param"]

    @property
    def events(self) -> list[Any]:
        """The data of all events; texts for those that are no JSON."""
        assert self.body.endswith(b"\n\n")
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            assert "\n" not in block, block
            assert block.startswith("data: "), block
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        return found


class Reservation:
    """What a request holds, noted."""

    def __init__(self, held: tuple[int, int]) -> None:
        self.held = held
        self.corrected: int | None = None
        self.settled: list[tuple[int | None, int]] = []

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return one of the headers."""
        return [(b"x-ratelimit-limit-requests", b"60")]

    def correct_input(self, input_tokens: int) -> None:
        """Note the number."""
        self.corrected = input_tokens

    async def settle(self, input_tokens: int | None, output_tokens: int) -> None:
        """Note what was used."""
        await asyncio.sleep(0)
        self.settled.append((input_tokens, output_tokens))


class Limiter:
    """Limits that refuse when a test says so."""

    def __init__(self) -> None:
        self.refusal: ApiError | None = None
        self.reservations: list[Reservation] = []

    async def reserve(self, _caller: Caller, input_tokens: int, output_tokens: int) -> Reservation:
        """Reserve, or refuse."""
        if self.refusal is not None:
            raise self.refusal
        self.reservations.append(Reservation((input_tokens, output_tokens)))
        return self.reservations[-1]


class Authenticator:
    """Knows callers by their header."""

    def __init__(self, callers: Mapping[str | None, Caller]) -> None:
        self._callers = callers

    async def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller."""
        if authorization not in self._callers:
            raise AuthenticationError
        return self._callers[authorization]


class ApiClient:
    """Calls endpoints.

    Args:
        say: what the model says.
        settings: of the gateway.
        callers: by their header; None for anybody.
        router: in the place of the one that a `say` makes.
    """

    def __init__(
        self,
        say: Callable[[GenerateCall], Script] | Script,
        *,
        settings: GatewaySettings | None = None,
        callers: Mapping[str | None, Caller] | None = None,
        router: FakeRouter | None = None,
    ) -> None:
        speak = say if callable(say) else (lambda _call: say)
        self.router = router or FakeRouter(speak)
        self.limiter = Limiter()
        self.context: Any = ApiContext(
            settings or GatewaySettings(),
            self.router,  # type: ignore[arg-type]
            Authenticator(callers or {None: ANYBODY}),  # type: ignore[arg-type]
            self.limiter,  # type: ignore[arg-type]
        )
        self._endpoints = {(one.method, one.path): one for one in endpoints(self.context)}

    def post(self, path: str, body: object, *, key: str | None = None) -> Answer:
        """Send a body, JSON or bytes."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.run(self.call("POST", path, raw, key=key))

    def get(self, path: str, params: Mapping[str, str] | None = None, *, key: str | None = None) -> Answer:
        """Get a path."""
        return asyncio.run(self.call("GET", path, b"", params=params, key=key))

    async def call(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        params: Mapping[str, str] | None = None,
        key: str | None = None,
        answer: Answer | None = None,
    ) -> Answer:
        """Call an endpoint."""
        request = Request(body, params or {}, {} if key is None else {"authorization": key})
        answer = answer or Answer()
        answer.record = request.record
        try:
            await self._endpoints[method, path].handle(request, answer)
        except ApiError as error:
            answer.fail(error)
        assert answer.is_over, "every request is answered"
        return answer


def chat_body(content: str = "hi", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat."""
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}


def joined_chat(events: Sequence[Any], num_choices: int = 1) -> list[dict[str, Any]]:
    """Return the choices that a client joins from the chunks of a chat."""
    choices: list[dict[str, Any]] = [
        {"content": "", "reasoning": "", "calls": [], "logprobs": [], "finish_reason": None} for _ in range(num_choices)
    ]
    for event in events:
        for part in event["choices"] if isinstance(event, dict) else ():
            choice, delta = choices[part["index"]], part["delta"]
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(choice["calls"]):
                    choice["calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                choice["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            choice["logprobs"] += (part["logprobs"] or {}).get("content", ())
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    return choices
