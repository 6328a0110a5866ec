"""The gateway's process: everything put together, from its start to its exit status.

Owns the order in which parts begin and end, and the signals. Never answers a request.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from trident_ensemble.contract.errors import ServerError
from trident_gateway.access.authenticator import Authenticator
from trident_gateway.api.openai_api import ApiContext, endpoints
from trident_gateway.http.agent import AgentPort, agent_line
from trident_gateway.http.application import Application
from trident_gateway.http.certificate import Certificate
from trident_gateway.http.drain import Drain
from trident_gateway.http.lifecycle import Lifecycle, Phase
from trident_gateway.http.listening import Port
from trident_gateway.http.part_metrics import add_metrics_of_parts
from trident_gateway.http.private import PrivateApplication
from trident_gateway.http.probes import Probes
from trident_gateway.http.progress import ProgressWatch
from trident_gateway.limits.limiter import Limiter
from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestLog, RequestRecord, Unbuffered
from trident_gateway.observing.tracing import NoTracer, Tracer
from trident_gateway.settings import GatewaySettings
from trident_gateway.upstream.router import Router

EXIT_CLEAN = 0
#: Requests that were running were cut.
EXIT_CUT = 3

_LOOK_EVERY_S = 1.0


class Gateway:
    """One gateway, which serves once.

    Args:
        settings: what it was told.
        announce: is told, once there is one, the models and whether they take messages, and the public port.
        say: tells the operator what happens.
        complain: tells the operator what should not have happened.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        announce: Callable[[dict[str, bool], int], None],
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._announce = announce
        self._say = say
        self._complain = complain

    def run(self) -> int:
        """Serve until a signal; return the exit status.

        Raises:
            TridentError: a file or a port cannot be used.
        """
        return uvloop.run(self._run())

    async def _run(self) -> int:
        settings = self._settings
        loop = asyncio.get_running_loop()
        # The default handler prints exceptions with their texts, which may quote a client.
        loop.set_exception_handler(self._report)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        lifecycle = Lifecycle()
        metrics = Metrics(lambda: lifecycle.num_running, lambda: lifecycle.phase is not Phase.SERVING)
        async with AsyncExitStack() as stack:
            public = Port(settings.host, settings.port, "--port")
            drain = Drain(
                lifecycle, settings.drain_delay_s, settings.drain_timeout_s, self._say, lambda: public.num_connections
            )
            stack.push_async_callback(public.stop)
            private = None
            if settings.private_port:
                private = Port(settings.private_host, settings.private_port, "--private-port")
                stack.push_async_callback(private.stop)
            agent = None
            if settings.agent_port:
                agent = AgentPort(settings.private_host, settings.agent_port)
                stack.push_async_callback(agent.stop)
            certificate = self._certificate(stack, metrics)
            log = self._open_log(stack, metrics)
            tracer = self._tracer(stack, metrics)
            authenticator, limiter = Authenticator.of(settings), Limiter.of(settings)
            router = Router(settings.servers, server_dns=settings.server_dns, routes_file=settings.routes_file)
            for part in (router, limiter, authenticator):
                stack.push_async_callback(part.close)
                await part.start()
            add_metrics_of_parts(metrics, router, limiter, authenticator, public)

            progress = ProgressWatch()
            probes = Probes(lifecycle, lambda: router.is_ready, lambda: progress.is_stuck)
            application = Application(
                endpoints(ApiContext(settings, router, authenticator, limiter)),
                settings=settings,
                lifecycle=lifecycle,
                probes=probes,
                metrics=metrics,
                log=log,
                tracer=tracer,
                complain=self._complain,
            )
            await public.start(application, settings.http, certificate)
            if private is not None:
                await private.start(PrivateApplication(probes, metrics, drain.begin), settings.http)
            if agent is not None:
                await agent.start(lambda: agent_line(probes.readiness(), router.fullness))
            if not router.is_ready:
                urls = ", ".join(status.server for status in router.status()) or "there is none"
                self._say(f"Listening on port {public.number}. No server with a model answers yet: {urls}")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, drain.take_signal)
            watch = loop.create_task(self._watch(router, progress, public.number))
            stack.callback(watch.cancel)
            num_cut = await drain.run()
            # Connections that are left have nothing to say; the parts behind them end what they have begun.
            await public.stop()
        if num_cut:
            self._complain(f"{num_cut} requests were cut")
        return EXIT_CUT if num_cut else EXIT_CLEAN

    async def _watch(self, router: Router, progress: ProgressWatch, port: int) -> None:
        is_announced = False
        loop = asyncio.get_running_loop()
        while True:
            if router.is_ready and not is_announced:
                models = {name: model.card.takes_messages for name, model in router.models().items()}
                self._announce(models, port)
                is_announced = True
            progress.look(loop.time(), router.status())
            await asyncio.sleep(_LOOK_EVERY_S)

    def _certificate(self, stack: AsyncExitStack, metrics: Metrics) -> Any:
        if self._settings.tls is None:
            return None

        def fail(text: str) -> None:
            metrics.count_failure("tls")
            self._complain(text)

        certificate = Certificate(self._settings.tls, metrics.set_certificate_end, fail)
        certificate.start()
        stack.callback(certificate.close)
        return certificate.context

    def _open_log(self, stack: AsyncExitStack, metrics: Metrics) -> Callable[[RequestRecord], None]:
        file: Unbuffered
        if self._settings.log_file is not None:
            try:
                file = stack.enter_context(self._settings.log_file.open("ab", buffering=0))
            except OSError as error:
                raise ServerError(
                    f"--log-file {self._settings.log_file}: cannot be written: {error.strerror or error}"
                ) from error
        elif self._settings.is_quiet:
            return lambda _: None
        else:
            file = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115 (it stays open)
        log = RequestLog(file, _counter(metrics, "request_log"))
        stack.callback(log.close)
        return log.write

    def _tracer(self, stack: AsyncExitStack, metrics: Metrics) -> Tracer:
        if self._settings.otlp_url is None:
            return NoTracer()
        # Costs a tenth of a second and some memory, which only those pay who ask for it.
        try:
            from trident_gateway.observing.otlp import OtlpTracer  # noqa: PLC0415
        except ImportError as error:
            raise ServerError(
                f"--otlp: OpenTelemetry is not installed (pip install 'trident-llm[tracing]'): {error}"
            ) from error
        tracer = OtlpTracer(self._settings.otlp_url, _counter(metrics, "traces"))
        stack.callback(tracer.close)
        return tracer

    def _report(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        self._complain(f"internal error: {type(fault).__name__ if fault else 'unknown'} outside of any request")


def _counter(metrics: Metrics, part: str) -> Callable[[], None]:
    """Return a function that any thread may call to count a failure."""
    loop = asyncio.get_running_loop()

    def count() -> None:
        loop.call_soon_threadsafe(metrics.count_failure, part)

    return count
