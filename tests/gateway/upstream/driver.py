"""What the tests of upstream share: an event loop with a limit, a wait, a router on doubles, and calls.

Owns nothing that outlives a test. Never asserts what a test is about.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import uvloop

from tests.fakes.triton_http import FakeTriton
from trident_ensemble.contract.routes import Routes, RouteServer, Side, render_routes
from trident_gateway.settings import ServerName
from trident_gateway.upstream.dns import Resolve, resolve
from trident_gateway.upstream.events import GenerateEvent
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall
from trident_gateway.upstream.watch_times import WatchTimes

Result = TypeVar("Result")
#: Servers are looked at often, so that tests need not wait.
QUICK = WatchTimes(probe_s=0.05, probe_down_s=0.02, models_s=0.05, routes_s=0.02, dns_s=0.02)
_ids = itertools.count(1)


def run(work: Coroutine[Any, Any, Result], seconds: float = 60.0) -> Result:
    """Run a test's coroutine on the event loop that the gateway runs on, and give up after a time."""
    return uvloop.run(asyncio.wait_for(work, seconds))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to come about; `run` gives up."""
    while not condition():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def routing(
    *fakes: FakeTriton,
    times: WatchTimes = QUICK,
    patience_s: float = 30.0,
    routes: RoutesFile | None = None,
    server_dns: ServerName | None = None,
    resolve: Resolve = resolve,
) -> AsyncIterator[Router]:
    """Yield a router on these servers, which are started if they are not, and end all of them."""
    for fake in fakes:
        if not fake.is_listening:
            await fake.start()
    router = Router(
        [fake.address for fake in fakes],
        server_dns=server_dns,
        routes_file=None if routes is None else routes.path,
        resolve=resolve,
        times=times,
        patience_s=patience_s,
        draw=Random(1),  # noqa: S311
    )
    try:
        await router.start()
        yield router
    finally:
        await router.close()
        for fake in fakes:
            await fake.kill()


class RoutesFile:
    """A routes file, which tests write as `trident rollout` does: whole, by a rename.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()

    def write(
        self,
        canary: Sequence[FakeTriton] = (),
        weight: float = 0.0,
        *,
        stable: Sequence[FakeTriton] | None = None,
    ) -> None:
        """Put servers on sides; the stable ones are those of the command line where none are named."""
        routes = Routes(
            None if stable is None else Side(_route_servers(stable)),
            Side(_route_servers(canary)) if canary else None,
            weight,
        )
        self.write_text(render_routes(routes))

    def write_text(self, text: str) -> None:
        """Put any content there."""
        beside = self.path.with_name(f"{self.path.name}.new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)


def _route_servers(fakes: Sequence[FakeTriton]) -> tuple[RouteServer, ...]:
    return tuple(RouteServer(fake.address.url, fake.address.metrics_url) for fake in fakes)


def make_call(
    router: Router, *, streaming: bool = True, deadline_s: float | None = None, caller: bytes = b"", **fields: Any
) -> GenerateCall:
    """Return a call to the model `demo`, as a caller finds it, with an id of its own."""
    model = router.find("demo", lambda: caller)
    assert model is not None
    special = {key: fields.pop(key) for key in ("affinity", "headers", "tenant") if key in fields}
    deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
    body = json.dumps({"text_input": "x", "max_tokens": 4, **fields}).encode()
    return GenerateCall(
        model, body, f"request-{next(_ids)}", **{"tenant": "t", **special}, streaming=streaming, deadline=deadline
    )


async def read_out(exchange: Exchange) -> list[GenerateEvent]:
    """Return the rest of an answer."""
    events: list[GenerateEvent] = []
    while read := await exchange.read():
        events += read
    await exchange.close()
    return events


async def ask(router: Router, **fields: Any) -> str:
    """Return the whole text of an answer."""
    events = await read_out(await router.open(make_call(router, **fields)))
    return "".join(str(event.text_output) for event in events)
