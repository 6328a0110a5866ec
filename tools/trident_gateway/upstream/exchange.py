"""One call to a server, from its first event to its end.

Owns the answer to one call: its events, its deadline, and how it is ended early. Never chooses a server and never
retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from trident_ensemble.contract.errors import read_wire_message
from trident_gateway.errors import ApiError, DeadlineError, EngineFaultError, UpstreamLostError
from trident_gateway.upstream.connection import BodyTooLargeError, ConnectError, ConnectionLostError
from trident_gateway.upstream.events import EventCutter, GenerateEvent, MalformedEventError
from trident_gateway.upstream.http_client import HttpClient, Response
from trident_gateway.upstream.refusals import (
    RefusedError,
    UpstreamRefusalError,
    api_error,
    read_refusal,
)
from trident_gateway.upstream.served_model import GenerateCall, render_call, render_stop

_MAX_REFUSAL_BYTES = 1 << 20
_STOP_TIMEOUT_S = 5.0
#: After each of these seconds a request that goes on is told to stop once more: it may not have reached the core yet.
_PAUSES_S = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


class Exchange:
    """The answer to one call.

    Args:
        client: the connections to the server.
        server: the server's name.
        ensemble: the name of the model there.
        call: what is asked.
        fresh: use a new connection, so that the call is sent once and never again.
        run: runs a coroutine beside the caller until it has ended, and longer than the caller.
        on_end: called once, when the server has nothing to do for this call any more.
    """

    def __init__(
        self,
        client: HttpClient,
        server: str,
        ensemble: str,
        call: GenerateCall,
        *,
        fresh: bool,
        run: Callable[[Coroutine[Any, Any, None]], None],
        on_end: Callable[[], None],
    ) -> None:
        self.server = server
        self._client = client
        self._path = f"/v2/models/{quote(ensemble, safe='')}/generate_stream"
        self._call = call
        self._fresh = fresh
        self._run = run
        self._on_end = on_end
        self._cutter = EventCutter()
        self._response: Response | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._first: Sequence[GenerateEvent] = ()
        self._failure: ApiError | None = None
        self._is_closed = False
        self._is_legible = True

    async def begin(self) -> None:
        """Send the call and wait for its first event; the caller must close the exchange whatever comes of it.

        Raises:
            ConnectError: there is no server; it has not seen the call.
            ConnectionLostError: the server was lost before it answered.
            RefusedError: it has refused the call.
            ApiError: the deadline has passed, or the server has answered nonsense.
        """
        call = self._call
        self._response = response = await self._client.send(
            b"POST", self._path, render_call(call), call.headers, fresh=self._fresh
        )
        call.spending.note_sent()
        if call.deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(call.deadline, response.interrupt, DeadlineError())
        try:
            self._first = await self._begin(response)
        except (MalformedEventError, BodyTooLargeError):
            raise EngineFaultError from None
        except ConnectError:
            call.spending.note_refused()
            raise
        except RefusedError as error:
            if error.wire.reason != "timeout":  # that one comes after work, though nothing else does
                call.spending.note_refused()
            raise
        if not self._first:
            raise EngineFaultError

    async def _begin(self, response: Response) -> Sequence[GenerateEvent]:
        status = await response.status()
        if status != 200:
            raise RefusedError(status, read_refusal(await response.read_all(_MAX_REFUSAL_BYTES)))
        first = await self._receive()
        if first and first[0].error is not None:
            raise RefusedError(status, first[0].error)
        return first

    async def read(self) -> Sequence[GenerateEvent]:
        """Return all events that one read of the connection has brought, without an error among them; none at the end.

        The connection is read only as fast as this is called.

        Raises:
            UpstreamLostError: the server was lost.
            DeadlineError: the deadline has passed.
            ApiError: the server has ended the answer with an error.
        """
        if self._first:
            events, self._first = self._first, ()
        elif self._failure is not None:
            raise self._failure
        else:
            try:
                events = await self._receive()
            except (ConnectionLostError, MalformedEventError):
                raise UpstreamLostError from None
        if events and events[-1].error is not None:
            self._failure = _failure(events[-1].error)
            if len(events) == 1:
                raise self._failure
            return events[:-1]
        return events

    async def close(self) -> None:
        """End the exchange; may be called twice, and at any time.

        A call whose answer is not complete is ended at the server, which goes on after this has returned. What comes
        of the answer meanwhile, or has come and was not read, goes to the call's `spending`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._call.spending.take(self._first)
        if self._response is None:
            self._on_end()
            return
        self._response.interrupt(None)
        if self._response.is_over:
            await self._read_unread(self._response)
            self._finish(self._response)
        else:
            self._run(self._end(self._response))

    async def _receive(self) -> Sequence[GenerateEvent]:
        assert self._response is not None
        while True:
            data = await self._response.read()
            if data:
                events = self._cutter.feed(data)
                if events:
                    return events
            elif self._cutter.is_at_border:
                return ()
            else:
                raise MalformedEventError("an event without its end")

    async def _end(self, response: Response) -> None:
        """Tell the server to stop until the answer has ended, which shows that it has; then hang up."""
        try:
            for pause in _PAUSES_S:
                if not await self._stop() or await self._ends(response, pause):
                    return
        finally:
            self._finish(response)

    def _finish(self, response: Response) -> None:
        response.close()
        self._call.spending.note_ended()
        self._on_end()

    async def _read_unread(self, response: Response) -> None:
        """Read an answer to its end, for what it says of its costs."""
        with suppress(ConnectionLostError):
            while data := await response.read():
                self._take(data)

    def _take(self, data: bytes) -> None:
        if self._is_legible:
            try:
                self._call.spending.take(self._cutter.feed(data))
            except MalformedEventError:
                self._is_legible = False

    async def _stop(self) -> bool:
        path = self._path.removesuffix("_stream")
        body = render_stop(self._call)
        try:
            await self._client.fetch(b"POST", path, body, max_bytes=_MAX_REFUSAL_BYTES, timeout_s=_STOP_TIMEOUT_S)
        except ConnectError:
            return False
        except (ConnectionLostError, BodyTooLargeError, asyncio.TimeoutError):
            pass
        return True

    async def _ends(self, response: Response, seconds: float) -> bool:
        """Return whether the answer ends within a time, be it by a failure."""
        timer = asyncio.get_running_loop().call_later(seconds, response.interrupt, asyncio.TimeoutError())
        try:
            await self._read_unread(response)
        except asyncio.TimeoutError:
            return False
        finally:
            timer.cancel()
            response.interrupt(None)
        return True


def _failure(message: str) -> ApiError:
    """Return what becomes of an error that comes in the middle of an answer, where nothing is the client's fault."""
    error = api_error(read_wire_message(message))
    return EngineFaultError() if isinstance(error, UpstreamRefusalError) else error
