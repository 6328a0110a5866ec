"""One call's answer: its events, its errors, its deadline, and its end when nobody wants it any more."""

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.upstream.driver import ask, make_call, read_out, routing, run, until
from trident_gateway.errors import (
    ApiError,
    DeadlineError,
    DrainingError,
    EngineFaultError,
    InvalidRequestError,
    OverloadedError,
    UpstreamLostError,
)
from trident_gateway.upstream.refusals import UpstreamRefusalError
from trident_gateway.upstream.served_model import GenerateCall, render_call


def _then(last: dict[str, Any]) -> Any:
    """Answer with two words and then with this."""
    return lambda body: Script([*tokens({**body, "max_tokens": 2}).events[:2], last], gap_s=0.005)


@pytest.mark.parametrize("streaming", [True, False])
def test_exchange_gives_the_events_and_then_none(streaming: bool) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            exchange = await router.open(make_call(router, streaming=streaming, max_tokens=5))
            assert exchange.server == fake.name
            events = await read_out(exchange)
            assert "".join(str(event.text_output) for event in events) == " t0 t1 t2 t3 t4"
            assert len(events) == (5 if streaming else 1)
            assert events[-1].finish_reason == "length"
            assert not await exchange.read()
            assert router.status()[0].num_in_flight == 0
            assert not fake.stops

    run(main())


def test_exchange_sends_what_is_asked_and_whose_it_is() -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            traceparent = (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            call = make_call(router, temperature=0.5, tenant='a"ä', headers=(traceparent,))
            await read_out(await router.open(call))
            (request,) = fake.requests
            assert request.body == {
                "id": call.request_id, "tenant": 'a"ä', "stream": True, "text_input": "x", "max_tokens": 4,
                "temperature": 0.5,
            }  # fmt: skip
            assert request.headers["traceparent"] == traceparent[1].decode()

    run(main())


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=3).filter(lambda key: key not in {"id", "tenant", "stream"}), st.integers()))
def test_render_call_joins_two_objects(fields: dict[str, int]) -> None:
    call = GenerateCall(None, json.dumps(fields).encode(), "i", "t", streaming=False)  # type: ignore[arg-type]
    assert json.loads(render_call(call)) == {"id": "i", "tenant": "t", "stream": False, **fields}


def test_exchange_reads_events_in_any_pieces() -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            for pieces in (1, 7, 64):
                fake.answer = lambda body, pieces=pieces: Script(tokens(body).events, pieces=pieces)  # type: ignore[misc]
                assert await ask(router, max_tokens=3) == " t0 t1 t2"

    run(main())


@pytest.mark.parametrize(
    ("message", "kind", "code", "param"),
    [
        ("[INVALID_ARG] max_tokens: must be at least 1", UpstreamRefusalError, "invalid_value", "max_tokens"),
        ("[INVALID_ARG] context_length: max_tokens: 300 after a prompt of 200 tokens", UpstreamRefusalError,
         "context_length_exceeded", "max_tokens"),
        ("[INVALID_ARG] invalid_guide: guided_decoding_guide: is impossible", UpstreamRefusalError,
         "invalid_json_schema", "guided_decoding_guide"),
        ("[UNAVAILABLE] queue_full: the queue is full", OverloadedError, "server_is_overloaded", None),
        ("[UNAVAILABLE] draining: the server is shutting down", DrainingError, "draining", None),
        ("[UNAVAILABLE] too_late: timeout_ms: 3 ms are not enough", DeadlineError, "timeout", None),
        ("[INTERNAL] the engine failed in /home/x/engine.py", EngineFaultError, None, None),
        ("what nobody knows, /secret", EngineFaultError, None, None),
    ],
)  # fmt: skip
def test_exchange_says_why_a_call_was_refused(message: str, kind: type[ApiError], code: str, param: str | None) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = lambda _: refusal(message)
            with pytest.raises(kind) as refused:
                await router.open(make_call(router))
            assert (refused.value.code, refused.value.param) == (code, param)
            assert "secret" not in str(refused.value)
            assert "/home" not in str(refused.value)
            assert router.status()[0].num_in_flight == 0
            assert await ask_again(fake, router)

    async def ask_again(fake: FakeTriton, router: Any) -> str:
        fake.answer = tokens
        return await ask(router)

    run(main())


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[UNAVAILABLE] timeout: timeout_ms: 30 ms are over", DeadlineError),
        ("[INTERNAL] the engine failed", EngineFaultError),
        ("[INVALID_ARG] x: y", EngineFaultError),
    ],
)
def test_exchange_gives_what_came_before_an_error(message: str, kind: type[ApiError]) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = _then({"error": message})
            exchange = await router.open(make_call(router))
            texts: list[str] = []

            async def read_on() -> None:
                while read := await exchange.read():
                    texts.extend(str(event.text_output) for event in read)

            with pytest.raises(kind) as failed:
                await read_on()
            assert texts == [" t0", " t1"]
            assert not isinstance(failed.value, InvalidRequestError)
            with pytest.raises(kind):
                await exchange.read()
            await exchange.close()

    run(main())


@pytest.mark.parametrize("last", [{"text_output": 5}, {"output_ids": "x"}, {"num_input_tokens": [1, 2]}])
def test_exchange_ends_where_the_server_talks_nonsense(last: dict[str, Any]) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = _then(last)
            exchange = await router.open(make_call(router))
            with pytest.raises(UpstreamLostError):
                await read_out(exchange)
            await exchange.close()
            fake.answer = lambda _: Script([last])
            with pytest.raises(EngineFaultError):
                await router.open(make_call(router))

    run(main())


@pytest.mark.parametrize("sent", [1, 3])
def test_exchange_says_that_the_server_was_lost(sent: int) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = lambda body: Script(tokens(body).events, break_after=sent)
            exchange = await router.open(make_call(router))
            with pytest.raises(UpstreamLostError):
                await read_out(exchange)
            await exchange.close()
            assert router.status()[0].num_in_flight == 0

    run(main())


@pytest.mark.parametrize("hang_after", [0, 2])
@pytest.mark.parametrize("streaming", [True, False])
def test_exchange_past_its_deadline_is_ended(hang_after: int, streaming: bool) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = lambda body: Script(tokens({**body, "stream": True}).events, hang_after=hang_after)
            call = make_call(router, deadline_s=1, streaming=streaming)

            async def whole() -> None:
                exchange = await router.open(call)
                try:
                    await read_out(exchange)
                finally:
                    await exchange.close()

            with pytest.raises(DeadlineError):
                await whole()
            await until(lambda: not fake.running)
            await until(lambda: router.status()[0].num_in_flight == 0)
            # A stop that overtakes its request is sent again; a request that was never sent needs none.
            stopped = {(stop["id"], stop["tenant"]) for stop in fake.stops}
            assert stopped == ({(call.request_id, "t")} if fake.requests else set())

    run(main())


def test_exchange_past_its_deadline_is_ended_though_events_wait_for_their_reader() -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = lambda body: Script(tokens(body).events, gap_s=0.001)
            call = make_call(router, max_tokens=100_000, deadline_s=1)

            async def read_slowly() -> None:
                exchange = await router.open(call)
                try:
                    while await exchange.read():
                        await asyncio.sleep(0.01)
                finally:
                    await exchange.close()

            with pytest.raises(DeadlineError):
                await read_slowly()
            await until(lambda: not fake.running)

    run(main())


def test_exchange_stops_again_what_was_not_there_to_be_stopped() -> None:
    """A request that is on its way to the core when the first `stop` arrives is not missed."""

    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.num_deaf_stops = 2
            fake.answer = lambda body: Script(tokens(body).events, hang_after=0)
            opening = asyncio.ensure_future(router.open(make_call(router, streaming=False)))
            await until(lambda: bool(fake.running))
            opening.cancel()
            await until(lambda: not fake.running)
            assert len(fake.stops) == 3
            assert fake.ended == {"done": 0, "cancelled": 1, "left": 0}
            await until(lambda: router.status()[0].num_in_flight == 0)

    run(main())


def test_exchange_that_is_not_read_holds_its_server_up_and_little_memory() -> None:
    """The server's writes block, and its end comes through whole when the reader goes on."""
    count, text = 2000, "x" * 20_000

    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.send_buffer = 1 << 16
            await fake.kill()
            await fake.start()
            fake.answer = lambda _: Script([{"text_output": text} for _ in range(count)])
            exchange = await router.open(make_call(router))
            tracemalloc.start()
            sent = -1
            while sent != fake.requests[0].num_sent:
                sent = fake.requests[0].num_sent
                await asyncio.sleep(0.1)
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert sent < count / 2
            assert held < 4 << 20
            assert len(await read_out(exchange)) == count

    run(main())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.booleans(), st.booleans())
def test_exchange_may_be_closed_at_any_moment(reads: int, streaming: bool, hangs: bool) -> None:
    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            fake.answer = lambda body: Script(tokens(body).events, hang_after=8 if hangs and streaming else None)
            exchange = await router.open(make_call(router, streaming=streaming, max_tokens=10))
            num_events = 0
            for _ in range(reads):
                events = await exchange.read()
                num_events += len(events)
                if not events or (hangs and num_events == 8):
                    break
            await exchange.close()
            await exchange.close()
            await until(lambda: not fake.running)
            await until(lambda: router.status()[0].num_in_flight == 0)
            assert re.fullmatch(r"( t\d)+", await ask(router, max_tokens=3))

    run(main())
