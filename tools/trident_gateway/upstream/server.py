"""One tritonserver behind the gateway: its connections, its health, its figures and its models.

Owns the watch over one server. Never chooses among servers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.balancer import Candidate
from trident_gateway.upstream.connection import BodyTooLargeError, ConnectError, ConnectionLostError
from trident_gateway.upstream.discovery import only_loads, read_models
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.health import Health, Level
from trident_gateway.upstream.http_client import HttpClient
from trident_gateway.upstream.metrics_page import MetricsPage, read_page
from trident_gateway.upstream.served_model import GenerateCall, ServedModel
from trident_gateway.upstream.sides import STABLE
from trident_gateway.upstream.step_watch import StepWatch
from trident_gateway.upstream.watch_times import WatchTimes

_MAX_PAGE_BYTES = 16 << 20
_FAILURES = (ConnectError, ConnectionLostError, BodyTooLargeError, asyncio.TimeoutError)
_log = logging.getLogger(__name__)


class Server:
    """One tritonserver, its state and the way to it.

    Args:
        address: of its ports.
        times: how it is watched.
        on_models: called after each reading of what it serves.
        on_news: called after each look at it.
    """

    def __init__(
        self,
        address: ServerAddress,
        times: WatchTimes,
        on_models: Callable[[Server], None],
        on_news: Callable[[], None],
    ) -> None:
        self.address = address
        self.name = address.name
        #: Where it stands, and what it has lately said that it serves.
        self.side = STABLE
        self.models: Sequence[ServedModel] = ()
        self.health = Health()
        #: Calls that it has, those that are being ended among them.
        self.num_in_flight = 0
        self._client = HttpClient(address.url)
        self._metrics = HttpClient(address.metrics_url)
        self._times = times
        self._on_models = on_models
        self._on_news = on_news
        self._page = MetricsPage({})
        self._page_at = float("-inf")
        self._models_read_at = float("-inf")
        self._steps = StepWatch(times.hung_s, times.trial_s)
        self._wakes = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def level(self) -> Level:
        """How much is to be hoped of it now."""
        now = asyncio.get_running_loop().time()
        level = self.health.level(now)
        return min(level, Level.DOUBTFUL) if self._is_hung(now) else level

    @property
    def is_well(self) -> bool:
        """Whether it says that it is ready, and answers."""
        return self.health.level(asyncio.get_running_loop().time()) is Level.READY

    @property
    def is_read(self) -> bool:
        """Whether it has ever said what it serves."""
        return self._models_read_at > float("-inf")

    @property
    def num_steps(self) -> float | None:
        """Steps that its cores have made; None where that was not heard lately."""
        return None if self._is_stale else self._page.num_steps

    @property
    def fullness(self) -> float:
        """How much of what its fullest core has is taken, from 0 to 1; 0 where that was not heard lately."""
        cores = () if self._is_stale else self._page.cores.values()
        return max((core.fullness for core in cores), default=0.0)

    @property
    def is_awaited(self) -> bool:
        """Whether calls have waited for the next byte of it for longer than any probe does."""
        since = self._awaited_since
        return since is not None and asyncio.get_running_loop().time() - since > self._times.timeout_s

    def _is_hung(self, now: float) -> bool:
        return self._steps.is_hung(now, is_awaited=self._awaited_since is not None)

    @property
    def _awaited_since(self) -> float | None:
        return self._client.awaited_since if self.num_in_flight else None

    @property
    def _is_stale(self) -> bool:
        return asyncio.get_running_loop().time() - self._page_at > self._times.stale_s

    def candidate(self, model: ServedModel) -> Candidate:
        """Return what the balancer must know of this server, for a call to a model as it has it."""
        figures = None if self._is_stale else self._page.cores.get(model.core)
        return Candidate(self.name, self.num_in_flight, figures)

    def exchange(self, model: ServedModel, call: GenerateCall, *, is_retry: bool) -> Exchange:
        """Return an exchange that has not begun; it counts as in flight from now until it has ended."""
        self._began()
        return Exchange(
            self._client, self.name, model.ensemble, call, fresh=is_retry, run=self._run, on_end=self._ended
        )

    async def post(self, path: str, body: bytes, *, max_bytes: int, timeout_s: float) -> tuple[int, bytes]:
        """Return the status and the body of an answer; raises what `HttpClient.fetch` does."""
        self._began()
        try:
            return await self._client.fetch(b"POST", path, body, max_bytes=max_bytes, timeout_s=timeout_s)
        finally:
            self._ended()

    def call_failed(self) -> None:
        """Note that a call got no connection, or lost it before its answer; the server is looked at at once."""
        self.health.call_failed(asyncio.get_running_loop().time())
        self._wakes.set()

    def start(self) -> None:
        """Begin to look at the server again and again, until it is closed."""
        self._watch = asyncio.get_running_loop().create_task(self._look_again_and_again())

    async def wait_until_idle(self) -> None:
        """Wait until it has no calls."""
        await self._idle.wait()

    async def _look_again_and_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            self._wakes.clear()
            await self.look()
            self._on_news()
            is_well = self.level is Level.READY and not self.health.is_suspect
            until = begin + (self._times.probe_s if is_well else self._times.probe_down_s)
            await asyncio.sleep(self._times.probe_down_s / 4)
            timer = loop.call_at(until, self._wakes.set)
            try:
                await self._wakes.wait()
            finally:
                timer.cancel()

    async def look(self) -> None:
        """Look at the server once: whether it is ready, how busy it is, and what it serves."""
        before = self.level
        try:
            status, _ = await self._client.fetch(
                b"GET", "/v2/health/ready", max_bytes=1 << 16, timeout_s=self._times.timeout_s
            )
            await self._read_figures()
            is_ready = status == 200 or (self.is_read and await only_loads(self._client))
            if is_ready:
                await self._read_models()
            self.health.probe_answered(is_ready=is_ready)
        except _FAILURES:
            self._failed()
        except Exception as error:  # a fault of ours must not end the watch
            _log.error("looking at server %s failed: %s", self.name, type(error).__name__)
            self._failed()
        if self.level is not before:
            _log.info("server %s is %s", self.name, self.level.name.lower())
        self._give_up_if_silent()

    async def close(self, timeout_s: float) -> None:
        """Stop looking; wait until calls that are being ended have ended, for a time, and close all connections."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()
        self._metrics.close()

    async def _read_figures(self) -> None:
        try:
            status, page = await self._metrics.fetch(
                b"GET", "/metrics", max_bytes=_MAX_PAGE_BYTES, timeout_s=self._times.timeout_s
            )
        except _FAILURES:
            return
        if status == 200:
            now = asyncio.get_running_loop().time()
            self._page, self._page_at = read_page(page), now
            if self._page.cores:
                self._steps.look(now, self._page.num_steps, self._awaited_since)

    async def _read_models(self) -> None:
        """Read what the server serves, if that was long ago or the server was away."""
        now = asyncio.get_running_loop().time()
        if not self.is_well or now - self._models_read_at >= self._times.models_s:
            self.models = await read_models(self._client)
            self._on_models(self)
            self._models_read_at = now

    def _give_up_if_silent(self) -> None:
        """Give up all calls to a server that has gone silent: the kernel does not notice a process that hangs."""
        since = self._client.silent_since
        if since is not None and asyncio.get_running_loop().time() - since > self._times.silence_s:
            self._client.fail_busy(ConnectionLostError("the server is silent"))

    def _failed(self) -> None:
        self.health.probe_failed(asyncio.get_running_loop().time())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _began(self) -> None:
        self.num_in_flight += 1
        self._idle.clear()

    def _ended(self) -> None:
        self.num_in_flight -= 1
        if not self.num_in_flight:
            self._idle.set()
