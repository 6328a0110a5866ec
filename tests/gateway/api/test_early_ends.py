"""A request that ends early is paid for by what its server says at last, on the real way to a server's double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.gateway_upstream import CARD
from tests.fakes.triton_http import Event, FakeTriton, Script, refusal, tokens
from tests.gateway.api.client import Answer, ApiClient, Reservation, chat_body
from tests.gateway.upstream.driver import routing, run, until
from trident_gateway.upstream.events import GenerateEvent
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall

CHAT = "/v1/chat/completions"
LAST: Event = {"num_input_tokens": 7, "num_output_tokens": 5}


def hang(_body: dict[str, Any]) -> Script:
    """Say nothing until the request is stopped, and then what it has cost."""
    return Script([{}], hang_after=0, cancelled=LAST)


@asynccontextmanager
async def gateway(fake: FakeTriton, patience_s: float = 30.0) -> AsyncIterator[ApiClient]:
    """Yield a client of the endpoints in front of a server."""
    async with routing(fake, patience_s=patience_s) as router:
        yield ApiClient(Script([]), router=router)  # type: ignore[arg-type]


def serve(answer: Callable[[dict[str, Any]], Script]) -> FakeTriton:
    """Return a server with the model that the bodies here name."""
    return FakeTriton(CARD, answer=answer)


def paid(client: ApiClient) -> set[tuple[int | None, int]]:
    """Return what the one request has been settled with."""
    (reservation,) = client.limiter.reservations
    assert isinstance(reservation, Reservation)
    return set(reservation.settled)


async def post(client: ApiClient, body: dict[str, Any], path: str = CHAT) -> Answer:
    """Send a body."""
    return await client.call("POST", path, json.dumps(body).encode())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_it_has_anything_pays_for_what_was_made(stream: bool) -> None:
    """Neither prompt nor answer is free because nobody waits for it; the log says the same."""
    answer = Answer()

    async def main() -> set[tuple[int | None, int]]:
        async with serve(hang) as fake, gateway(fake) as client:
            body = json.dumps(chat_body(stream=stream)).encode()
            task = asyncio.ensure_future(client.call("POST", CHAT, body, answer=answer))
            await until(lambda: bool(fake.running))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return paid(client)

    assert run(main()) == {(7, 5)}
    assert (answer.record.num_input_tokens, answer.record.num_output_tokens) == (7, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_costs_what_was_made_until_then(stream: bool) -> None:
    """A client cannot have its prompts read for nothing by a timeout that always passes."""

    async def main() -> tuple[int, set[tuple[int | None, int]]]:
        async with serve(hang) as fake, gateway(fake) as client:
            answer = await post(client, chat_body(stream=stream, timeout=0.05))
            return answer.status, paid(client)

    assert run(main()) == (504, {(7, 5)})


def test_a_timeout_of_the_server_costs_what_is_held_for_the_input() -> None:
    """It comes after work, and has no count."""

    async def main() -> tuple[int, set[tuple[int | None, int]]]:
        async with serve(lambda _: refusal("[UNAVAILABLE] timeout: timeout_ms: 5 ms are over")) as fake:
            async with gateway(fake) as client:
                return (await post(client, chat_body())).status, paid(client)

    assert run(main()) == (504, {(None, 0)})


def test_a_server_that_dies_costs_what_is_held_for_the_input() -> None:
    """It has taken the request and will never say what it did."""

    async def main() -> tuple[int, set[tuple[int | None, int]]]:
        async with serve(lambda _: Script([{}], break_after=0)) as fake, gateway(fake) as client:
            return (await post(client, chat_body())).status, paid(client)

    assert run(main()) == (500, {(None, 0)})


@pytest.mark.parametrize("dies", [False, True])
def test_what_no_server_has_taken_costs_nothing(dies: bool) -> None:
    """Neither a server that is away nor one that refuses has done any work."""

    async def main() -> set[tuple[int | None, int]]:
        async with serve(lambda _: refusal("[INVALID_ARG] top_p: must be at most 1")) as fake:
            async with gateway(fake, patience_s=0.1) as client:
                if dies:
                    await fake.kill()
                assert (await post(client, chat_body())).status == (503 if dies else 400)
                return paid(client)

    assert run(main()) == {(0, 0)}


def test_the_prompts_beside_one_that_is_refused_are_paid_for() -> None:
    """A prompt that a server refuses does not make the others free."""
    gate = asyncio.Event()
    asked: list[str] = []

    def answer(body: dict[str, Any]) -> Script:
        asked.append(body["text_input"])
        if len(asked) == 3:
            gate.set()
        if body["text_input"] == "bad":
            return replace(refusal("[INVALID_ARG] text_input: is too long"), gate=gate)
        return hang(body)

    async def main() -> tuple[int, set[tuple[int | None, int]]]:
        async with serve(answer) as fake, gateway(fake) as client:
            body = {"model": "demo", "prompt": ["a", "bad", "b"]}
            return (await post(client, body, "/v1/completions")).status, paid(client)

    assert run(main()) == (400, {(14, 10)})


@pytest.mark.parametrize("num_reads", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_has_come_and_was_not_read_is_told_at_the_close(num_reads: int, streaming: bool) -> None:
    """Every response is either read or told, once."""

    async def open_and_leave(router: Router) -> list[GenerateEvent]:
        late: list[GenerateEvent] = []
        model = router.find("demo")
        assert model is not None
        body = json.dumps({"text_input": "x", "max_tokens": 4}).encode()
        call = GenerateCall(model, body, "r", "t", streaming)
        call.spending.take = late.extend
        exchange = await router.open(call)
        read = [event for _ in range(num_reads) for event in await exchange.read()]
        await exchange.close()
        await exchange.close()
        await call.spending.wait_until_ended()
        assert call.spending.is_taken
        return read + late

    async def main() -> list[GenerateEvent]:
        async with serve(lambda body: Script(tokens(body).events)) as fake, routing(fake) as router:
            return await open_and_leave(router)

    texts = "".join(str(event.text_output) for event in run(main()))
    assert texts == " t0 t1 t2 t3"
