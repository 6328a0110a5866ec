"""What the tests of upstream share: an event loop with a limit, a wait, a router on doubles, and calls.

Owns nothing that outlives a test. Never asserts what a test is about.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

import uvloop

from tests.fakes.triton_http import FakeTriton
from trident_gateway.upstream.events import GenerateEvent
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall
from trident_gateway.upstream.server import WatchTimes

Result = TypeVar("Result")
#: Servers are looked at often, so that tests need not wait.
QUICK = WatchTimes(probe_s=0.05, probe_down_s=0.02, models_s=0.05)
_ids = itertools.count(1)


def run(work: Coroutine[Any, Any, Result], seconds: float = 60.0) -> Result:
    """Run a test's coroutine on the event loop that the gateway runs on, and give up after a time."""
    return uvloop.run(asyncio.wait_for(work, seconds))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to come about; `run` gives up."""
    while not condition():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def routing(*fakes: FakeTriton, times: WatchTimes = QUICK, patience_s: float = 30.0) -> AsyncIterator[Router]:
    """Yield a router on these servers, which are started if they are not, and end all of them."""
    for fake in fakes:
        if not fake.is_listening:
            await fake.start()
    router = Router([fake.address for fake in fakes], times=times, patience_s=patience_s, draw=Random(1))  # noqa: S311
    try:
        await router.start()
        yield router
    finally:
        await router.close()
        for fake in fakes:
            await fake.kill()


def make_call(
    router: Router, *, streaming: bool = True, deadline_s: float | None = None, **fields: Any
) -> GenerateCall:
    """Return a call to the model `demo` with an id of its own."""
    model = router.find("demo")
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
