"""The application behind the public port.

Owns the way of every request: in, to its endpoint, and out by exactly one answer, one line of the log and one count,
whatever happens meanwhile. Never reads a body and never knows what an endpoint does.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trident_gateway.api.interface import Endpoint
from trident_gateway.errors import ApiError, DrainingError, EngineFaultError, MethodNotAllowedError, ShutdownError
from trident_gateway.http.answer import Answer, Send
from trident_gateway.http.lifecycle import Lifecycle, RunningRequest
from trident_gateway.http.origins import check_host_is_here
from trident_gateway.http.probes import Probes, send_probe
from trident_gateway.http.request import IncomingRequest, Receive, request_id_of
from trident_gateway.http.routes import Routes
from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import Tracer
from trident_gateway.settings import GatewaySettings

_HEALTH = "/health"
_UNKNOWN_ROUTE = "unknown"
_CLIENT_CLOSED_REQUEST = 499


class Application:
    """An ASGI application of endpoints.

    Args:
        endpoints: of the API.
        settings: of the gateway.
        lifecycle: knows what runs, and whether more may.
        probes: answers `/health`.
        metrics: counts requests.
        log: takes the record of each.
        tracer: traces some of them.
        complain: tells the operator about a fault of the gateway itself.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        settings: GatewaySettings,
        lifecycle: Lifecycle,
        probes: Probes,
        metrics: Metrics,
        log: Callable[[RequestRecord], None],
        tracer: Tracer,
        complain: Callable[[str], None],
    ) -> None:
        self._routes = Routes(endpoints)
        self._settings = settings
        self._lifecycle = lifecycle
        self._probes = probes
        self._metrics = metrics
        self._log = log
        self._tracer = tracer
        self._complain = complain

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] == _HEALTH and scope["method"] in ("GET", "HEAD"):
            await send_probe(send, self._probes.readiness(), request_id_of(scope["headers"]))
            return
        task = asyncio.current_task()
        assert task is not None, "an ASGI server runs each request in a task"
        record = RequestRecord(request_id=request_id_of(scope["headers"]), route=_UNKNOWN_ROUTE, started_s=time.time())
        running = RunningRequest(task)
        answer = Answer(
            send,
            record=record,
            running=running,
            lifecycle=self._lifecycle,
            metrics=self._metrics,
            keep_alive_s=self._settings.keep_alive_s,
        )
        span = self._tracer.start(scope["headers"], record)
        request = IncomingRequest(
            scope["headers"], receive, record=record, span=span, running=running, limits=self._settings.http
        )
        self._lifecycle.enter(running)
        try:
            await self._answer(scope, request, answer, running)
        except asyncio.CancelledError:
            if not running.is_cancelled:
                raise
        except Exception as fault:
            # Not even the error could be sent, so the connection is closed.
            self._complain(f"{_described(fault)}, in request {record.request_id}")
        finally:
            request.unwatch()
            answer.close()
            self._lifecycle.leave(running)
            self._note(record, answer, running)
            span.finish(record)

    async def _answer(self, scope: Any, request: IncomingRequest, answer: Answer, running: RunningRequest) -> None:
        try:
            await self._handle(scope, request, answer)
        except ApiError as error:
            if error.limit:
                self._metrics.count_refusal(error.limit)
            await answer.fail(error)
        except asyncio.CancelledError:
            if not running.is_stopped:
                raise
            await answer.fail(ShutdownError())
        except Exception as fault:
            self._complain(f"{_described(fault)}, in request {request.record.request_id}")
            await answer.fail(EngineFaultError())

    async def _handle(self, scope: Any, request: IncomingRequest, answer: Answer) -> None:
        if not self._settings.asks_for_keys:
            check_host_is_here(scope["headers"])
        if scope["path"] == _HEALTH:
            raise MethodNotAllowedError(("GET",))
        endpoint, request.path_params = self._routes.find(scope["method"], scope["path"])
        request.record.route = endpoint.path
        if not self._lifecycle.takes_from(scope["state"]["opened_at"]):
            raise DrainingError
        if endpoint.method == "GET":
            request.watch()
        await endpoint.handle(request, answer)
        await answer.finish()

    def _note(self, record: RequestRecord, answer: Answer, running: RunningRequest) -> None:
        record.duration_s = answer.seconds
        if running.is_client_gone:
            if not answer.has_started:
                record.status = _CLIENT_CLOSED_REQUEST
            if not record.is_stream:
                record.client_gone = "plain"
            else:
                record.client_gone = "waiting" if record.ttft_s is None else "stream"
        self._metrics.count_request(record)
        self._log(record)


def _described(fault: Exception) -> str:
    """Return what a fault was and where, without its text, which may quote a client."""
    frames = traceback.extract_tb(fault.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    own = next((frame for frame in reversed(frames) if "trident_gateway" in frame.filename), None)
    via = f", called from {Path(own.filename).name}:{own.lineno}" if own and own is not frames[-1] else ""
    return f"internal error: {type(fault).__name__}{where}{via}"
