"""Calls while a canary stands beside the stable servers: who goes to it, and what becomes of what it cannot take."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.upstream.driver import RoutesFile, make_call, read_out, routing, run, until
from tests.ports import free_ports
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.errors import DrainingError, EngineFaultError, OverloadedError, UpstreamLostError
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import ReplanError
from trident_gateway.upstream.sides import CANARY, STABLE, position

OLD = ModelCard("demo", 5, 4096, digest="old")
NEW = ModelCard("demo", 9, 4096, digest="new")


def _caller(weight: float, *, is_below: bool) -> bytes:
    """Return a caller whose position is below a weight, or is not."""
    return next(name for name in (b"%d" % n for n in range(10_000)) if (position(name) < weight) is is_below)


FIRST, LAST = _caller(5, is_below=True), _caller(95, is_below=False)


async def open_planned(router: Router, caller: bytes, **fields: Any) -> Exchange:
    """Open a call as the API does, which plans it anew where it is told so; its body says for which card."""
    call = make_call(router, caller=caller, **fields)
    model = call.model
    while True:
        body = json.dumps({**json.loads(call.body), "planned_for": model.card.digest}).encode()
        try:
            return await router.open(replace(call, model=model, body=body))
        except ReplanError as error:
            model = error.model


async def served_by(router: Router, caller: bytes) -> str:
    """Return the server that has answered a call, all of it."""
    exchange = await open_planned(router, caller)
    assert len(await read_out(exchange)) == 4
    return exchange.server


async def on_canary(router: Router, weight: float) -> None:
    """Wait until a weight is in force and the canary is ready for it."""
    await until(lambda: router.weights[CANARY] == weight and _side(router, _caller(weight, is_below=True)) == CANARY)


def _side(router: Router, caller: bytes) -> str:
    model = router.find("demo", lambda: caller)
    return "" if model is None else model.side


def test_canary_has_the_callers_below_its_weight_and_its_own_card(tmp_path: Path) -> None:
    """And is no conflict with the stable side."""

    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        async with canary, routing(stable, routes=routes) as router:
            assert router.weights == {STABLE: 100, CANARY: 0}
            callers = [b"key%d" % index for index in range(10_000)]
            seen: set[bytes] = set()
            for weight in (1, 10, 50, 100):
                routes.write([canary], weight)
                await on_canary(router, weight)
                now = {caller for caller in callers if _side(router, caller) == CANARY}
                assert abs(len(now) / 100 - weight) < 2
                assert now >= seen
                seen = now
            routes.write([canary], 10)
            await on_canary(router, 10)
            assert await served_by(router, FIRST) == canary.name
            assert await served_by(router, LAST) == stable.name
            found = [router.find("demo", lambda caller=caller: caller) for caller in (FIRST, LAST)]  # type: ignore[misc]
            assert [model.card.digest for model in found if model is not None] == ["new", "old"]
            assert not router.conflicts
            assert {(name, side) for name, _, side in router.picks} == {(canary.name, CANARY), (stable.name, STABLE)}
            assert {status.server: status.side for status in router.status()} == {
                canary.name: CANARY, stable.name: STABLE,
            }  # fmt: skip
            routes.write()
            await until(lambda: _side(router, FIRST) == STABLE)
            assert await served_by(router, FIRST) == stable.name

    run(main())


def test_canary_that_is_not_ready_has_no_callers(tmp_path: Path) -> None:
    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        canary.is_ready = False
        async with canary, routing(stable, routes=routes) as router:
            routes.write([canary], 100)
            await until(lambda: router.weights[CANARY] == 100 and canary.num_probes > 3)
            for index in range(20):
                assert await served_by(router, b"%d" % index) == stable.name
            assert not router.retries  # they were never meant for it
            canary.is_ready = True
            await on_canary(router, 100)
            assert await served_by(router, LAST) == canary.name
            await canary.kill()
            for index in range(20):
                assert await served_by(router, b"%d" % index) == stable.name
            assert not canary.requests[1:]
            assert set(router.retries) <= {"refused", "lost", "canary"}

    run(main())


def _dies(body: dict[str, Any]) -> Script:
    return Script(tokens(body).events, break_after=0)


@pytest.mark.parametrize(
    "answer",
    [
        _dies,
        lambda _: refusal("[UNAVAILABLE] queue_full: the queue is full"),
        lambda _: refusal("[UNAVAILABLE] draining: the server is shutting down"),
        lambda _: refusal("Request for unknown model: 'ensemble' is not found", 404),
    ],
)
@pytest.mark.parametrize("num_canaries", [1, 3])
def test_canary_that_cannot_take_a_call_leaves_it_to_the_stable_side(
    answer: Any, num_canaries: int, tmp_path: Path
) -> None:
    """Planned anew, whatever it was that the canary could not do."""

    async def main() -> None:
        stable, routes = FakeTriton(OLD), RoutesFile(tmp_path / "routes")
        canaries = [FakeTriton(NEW, answer=answer) for _ in range(num_canaries)]
        async with routing(stable, routes=routes) as router:
            for canary in canaries:
                await canary.start()
            routes.write(canaries, 50)
            await on_canary(router, 50)
            await until(lambda: all(status.is_ready for status in router.status()))
            for _ in range(3):
                assert await served_by(router, FIRST) == stable.name
            call = make_call(router, caller=FIRST)
            if call.model.side == CANARY:
                with pytest.raises(ReplanError) as raised:
                    await router.open(call)
                assert (raised.value.model.side, raised.value.model.card.digest) == (STABLE, "old")
                assert raised.value.is_fallback
            assert router.retries["canary"] >= 1
            for canary in canaries:
                await canary.kill()

    run(main())


def test_canary_that_is_not_ready_has_no_calls_of_another_canary_either(tmp_path: Path) -> None:
    async def main() -> None:
        stable, routes = FakeTriton(OLD), RoutesFile(tmp_path / "routes")
        full, starting = FakeTriton(NEW, answer=lambda _: refusal("[UNAVAILABLE] queue_full: full")), FakeTriton(NEW)
        starting.is_ready = False
        async with full, starting, routing(stable, routes=routes) as router:
            routes.write([full, starting], 50)
            await on_canary(router, 50)
            await until(lambda: starting.num_probes > 3)
            assert await served_by(router, FIRST) == stable.name
            assert len(full.requests) == 1
            assert not starting.requests

    run(main())


def test_canary_answers_with_its_own_faults(tmp_path: Path) -> None:
    """Those are what a rollout looks for."""

    async def main() -> None:
        stable, routes = FakeTriton(OLD), RoutesFile(tmp_path / "routes")
        canary = FakeTriton(NEW, answer=lambda _: refusal("[INTERNAL] a bug"))
        async with canary, routing(stable, routes=routes) as router:
            routes.write([canary], 50)
            await on_canary(router, 50)
            with pytest.raises(EngineFaultError):
                await open_planned(router, FIRST)
            assert not stable.requests

    run(main())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda _: refusal("[UNAVAILABLE] queue_full: the queue is full"), OverloadedError),
        (lambda _: refusal("[UNAVAILABLE] draining: the server is shutting down"), DrainingError),
        (_dies, UpstreamLostError),
    ],
)
def test_canary_with_all_callers_and_no_stable_side_is_like_one(
    answer: Any, kind: type[Exception], tmp_path: Path
) -> None:
    async def main() -> None:
        canaries, routes = [FakeTriton(NEW), FakeTriton(NEW)], RoutesFile(tmp_path / "routes")
        async with canaries[0], canaries[1], routing(routes=routes) as router:
            routes.write(canaries, 100, stable=[])
            await on_canary(router, 100)
            assert router.is_ready
            assert set(router.models(lambda: LAST)) == {"demo"}
            assert {await served_by(router, b"%d" % index) for index in range(20)} == {one.name for one in canaries}
            for canary in canaries:
                canary.answer = answer
            with pytest.raises(kind):
                await open_planned(router, LAST)
            for canary in canaries:
                canary.answer = tokens
                await canary.kill()
            await until(lambda: not router.is_ready)
            waiting = asyncio.ensure_future(served_by(router, LAST))
            await asyncio.sleep(0.05)  # nothing shows that it is not refused
            await canaries[1].start()
            assert await waiting == canaries[1].name

    run(main())


def test_stable_callers_never_go_to_a_canary_whose_weight_is_above_them(tmp_path: Path) -> None:
    """Even if that is all that is there: a weight of nothing means nothing."""

    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        async with canary, routing(stable, routes=routes) as router:
            routes.write([canary], 0)
            await until(lambda: len(router.status()) == 2 and all(status.is_ready for status in router.status()))
            await stable.kill()
            await until(lambda: not router.is_ready)
            waiting = asyncio.ensure_future(served_by(router, FIRST))
            await asyncio.sleep(0.2)  # nothing shows that it does not go there
            assert not waiting.done()
            await stable.start()
            assert await waiting == stable.name

    run(main())


def test_canary_that_is_promoted_ends_what_it_has_and_keeps_its_calls(tmp_path: Path) -> None:
    """It takes the stable servers' place, and these end what they have, and leave."""

    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        async with canary, routing(stable, routes=routes) as router:
            routes.write([canary], 50)
            await on_canary(router, 50)
            gate = asyncio.Event()
            for fake in (stable, canary):
                fake.answer = lambda body: Script(tokens(body).events, gates={1: gate})
            running = [await open_planned(router, caller) for caller in (FIRST, LAST)]
            assert [exchange.server for exchange in running] == [canary.name, stable.name]
            late = make_call(router, caller=LAST)
            routes.write(stable=[canary])
            await until(lambda: {status.side for status in router.status()} == {STABLE})
            states = {status.server: (status.is_ready, status.num_in_flight) for status in router.status()}
            assert states == {canary.name: (True, 1), stable.name: (False, 1)}
            with pytest.raises(ReplanError) as raised:  # it was planned for a card that nobody serves any more
                await router.open(late)
            assert raised.value.model.card.digest == "new"
            assert not raised.value.is_fallback
            gate.set()
            assert [len(await read_out(exchange)) for exchange in running] == [4, 4]
            await until(lambda: [status.server for status in router.status()] == [canary.name])
            assert stable.ended == {"done": 1, "cancelled": 0, "left": 0}
            await until(lambda: {name for name, _, _ in router.picks} == {canary.name})
            await until(lambda: stable.num_connections == 0)
            assert await served_by(router, LAST) == canary.name

    run(main())


def test_stable_servers_that_others_replace_serve_until_these_do(tmp_path: Path) -> None:
    async def main() -> None:
        old, new, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        new.is_ready = False  # so that nobody reads what it has
        async with new, routing(old, routes=routes) as router:
            routes.write(stable=[new])
            await until(lambda: new.num_probes > 3)
            assert await served_by(router, FIRST) == old.name
            new.is_ready = True
            await until(lambda: [status.server for status in router.status()] == [new.name])
            assert await served_by(router, FIRST) == new.name

    run(main())


def test_canary_leaves_at_once_where_none_takes_its_place(tmp_path: Path) -> None:
    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        async with canary, routing(stable, routes=routes) as router:
            routes.write([canary], 50)
            await on_canary(router, 50)
            routes.write()
            await until(lambda: not router.weights[CANARY])
            assert [status.server for status in router.status() if status.is_ready] == [stable.name]

    run(main())


def test_fullness_is_that_of_servers_that_have_callers(tmp_path: Path) -> None:
    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        stable.figures["core"], canary.figures["core"] = (0, 0, 0.75), (0, 0, 0.25)
        async with canary, routing(stable, routes=routes) as router:
            for weight, fullness in ((0, 0.75), (50, 0.5), (100, 0.25)):
                routes.write([canary], weight)
                await until(lambda weight=weight: router.weights[CANARY] == weight)  # type: ignore[misc]
                await until(lambda: len(router.status()) == 2 and all(one.is_ready for one in router.status()))
                assert router.fullness == fullness
            await canary.kill()  # so its callers are the stable side's
            await until(lambda: not router.status()[1].is_ready)
            assert router.fullness == 0.75

    run(main())


def test_routes_file_that_is_broken_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        stable, canary, routes = FakeTriton(OLD), FakeTriton(NEW), RoutesFile(tmp_path / "routes")
        async with canary, routing(stable, routes=routes) as router:
            routes.write([canary], 50)
            await on_canary(router, 50)
            for index, text in enumerate(("{", '{"format": 1, "canry": {}}', '{"format": 2}'), 1):
                routes.write_text(text)
                await until(lambda index=index: router.membership.num_routes_failures == index)  # type: ignore[misc]
                assert router.weights[CANARY] == 50
                assert await served_by(router, FIRST) == canary.name
            routes.path.unlink()
            await until(lambda: router.membership.num_routes_failures == 4)
            assert await served_by(router, FIRST) == canary.name
            routes.write([canary], 60)
            await on_canary(router, 60)

    run(main())
    assert "canry: unknown key" in caplog.text


STATES = st.fixed_dictionaries(
    {
        "weight": st.sampled_from([0, 1, 50, 99, 100]),
        "is_up": st.tuples(st.booleans(), st.booleans()),
        "is_ready": st.tuples(st.booleans(), st.booleans()),
        "is_full": st.booleans(),
    }
)


@pytest.mark.slow
@settings(deadline=None, max_examples=6, phases=[Phase.explicit, Phase.generate])  # its time is the system's
@given(st.lists(STATES, min_size=1, max_size=4))
def test_canary_in_whatever_state_costs_nobody_an_answer(
    tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, Any]]
) -> None:
    """Nor does any call reach a server whose card is not the one that it was planned for."""

    async def main() -> None:
        ports = free_ports(4)
        fixed = FakeTriton(OLD)
        canaries = [FakeTriton(NEW, port=ports[n], metrics_port=ports[n + 2]) for n in range(2)]
        routes = RoutesFile(tmp_path_factory.mktemp("r") / "routes")
        outcomes: Counter[str] = Counter()
        is_over = False

        async def client(caller: bytes) -> None:
            while not is_over:
                exchange = await open_planned(router, caller, streaming=False)
                await read_out(exchange)
                outcomes[exchange.server] += 1
                await asyncio.sleep(0)

        async with routing(fixed, routes=routes) as router:
            clients = [asyncio.ensure_future(client(b"caller%d" % index)) for index in range(8)]
            for state in states:
                for canary, is_up, is_ready in zip(canaries, state["is_up"], state["is_ready"], strict=True):
                    if canary.is_listening and not is_up:
                        # A process that ends may have begun an answer, which is nobody's fault here.
                        canary.is_ready = False
                        routes.write(canaries, 0)
                        await until(lambda: router.weights[CANARY] == 0 and not canary.running)  # noqa: B023
                        await canary.kill()
                    elif is_up and not canary.is_listening:
                        await canary.start()
                    canary.is_ready = is_ready
                    canary.answer = (
                        (lambda _: refusal("[UNAVAILABLE] queue_full: full")) if state["is_full"] else tokens
                    )
                routes.write(canaries, state["weight"])
                await until(lambda: router.weights[CANARY] == state["weight"])  # noqa: B023
                before = outcomes.total()
                await until(lambda: outcomes.total() > before + 100)  # noqa: B023
                assert not any(one.done() for one in clients)
            is_over = True
            await asyncio.gather(*clients)
            for server in (fixed, *canaries):
                await server.kill()
                planned_for = {running.body["planned_for"] for running in server.requests}
                assert planned_for <= {server.cards[0].digest}

    run(main())
