"""Where calls go, and what becomes of them when servers are full, drain, die and come back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from typing import Any

import pytest

from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.upstream.driver import QUICK, ask, make_call, read_out, routing, run, until
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.errors import (
    DeadlineError,
    DrainingError,
    EngineFaultError,
    ModelNotFoundError,
    NoUpstreamError,
    OverloadedError,
    UpstreamLostError,
)
from trident_gateway.upstream.refusals import UpstreamRefusalError
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.watch_times import WatchTimes

CARD = ModelCard("demo", 5, 4096, digest="d0", aliases=("gpt",))


def _in_turn(*answers: Any) -> Any:
    """Answer the first request with the first answer and so on, the last one with all that follow."""
    left = list(answers)
    return lambda body: (left.pop(0) if len(left) > 1 else left[0])(body)  # noqa: PLW0108 (each time another)


def _dies(body: dict[str, Any]) -> Script:
    return Script(tokens(body).events, break_after=0)


def _says(message: str) -> Any:
    return lambda _: refusal(message)


def test_router_finds_models_by_name_and_alias_and_sees_them_come_and_go() -> None:
    async def main() -> None:
        other = ModelCard("other", 7, 128)
        async with FakeTriton(CARD) as fake, routing(fake) as router:
            assert set(router.models()) == {"demo"}
            assert router.find("gpt") is router.find("demo") is router.models()["demo"]
            assert router.find("other") is None
            assert router.models()["demo"].core == "core"
            fake.cards.append(other)
            await until(lambda: "other" in router.models())
            model = router.models()["other"]
            assert (model.card, model.ensemble, model.preprocessing, model.core) == (
                other, "other", "other_preprocessing", "other_core",
            )  # fmt: skip
            fake.cards.remove(other)
            await until(lambda: "other" not in router.models())
            call = make_call(router)
            fake.cards.clear()
            await until(lambda: not router.models())
            assert not router.is_ready
            with pytest.raises(ModelNotFoundError):
                await router.open(call)

    run(main())


def test_router_leaves_out_a_model_whose_card_it_cannot_read(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        strange = ModelCard("strange", 7, 128, tool_markers={"start": "no marker"})  # type: ignore[dict-item]
        async with FakeTriton(CARD, strange) as fake, routing(fake) as router:
            assert set(router.models()) == {"demo"}
            assert await ask(router) == " t0 t1 t2 t3"

    run(main())
    assert "model strange is left out" in caplog.text


def test_router_uses_all_servers_of_a_model() -> None:
    async def main() -> None:
        async with routing(FakeTriton(CARD), FakeTriton(CARD)) as router:
            servers = Counter([(await router.open(make_call(router))).server for _ in range(40)])
            assert min(servers.values()) > 10

    run(main())


def test_router_keeps_equal_beginnings_together() -> None:
    async def main() -> None:
        async with routing(FakeTriton(CARD), FakeTriton(CARD), FakeTriton(CARD)) as router:
            for index in range(6):
                servers: set[str] = set()
                for _ in range(5):
                    exchange = await router.open(make_call(router, affinity=b"prefix %d" % index))
                    servers.add(exchange.server)
                    await read_out(exchange)
                assert len(servers) == 1
            assert sum(count for (_, reason, _), count in router.picks.items() if reason == "affinity") == 30

    run(main())


def test_router_goes_by_the_figures_of_the_metrics_page() -> None:
    async def main() -> None:
        full, free = FakeTriton(CARD), FakeTriton(CARD)
        full.figures["core"] = (50, 200, 0.9)
        async with routing(full, free) as router:
            for _ in range(10):
                assert (await router.open(make_call(router))).server == free.name

    run(main())


def test_router_uses_only_servers_that_agree_on_a_model(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        old, new = FakeTriton(CARD), FakeTriton(ModelCard("demo", 9, 4096, digest="d1"))
        async with routing(old, new) as router:
            assert router.conflicts == {"demo"}
            for _ in range(8):
                assert (await router.open(make_call(router))).server == new.name
            old.cards = new.cards
            await until(lambda: not router.conflicts)

    run(main())
    assert "do not agree on model demo" in caplog.text


@pytest.mark.parametrize(
    ("message", "kind"),
    [("[UNAVAILABLE] queue_full: the queue is full", OverloadedError),
     ("[UNAVAILABLE] draining: the server is shutting down", DrainingError)],
)  # fmt: skip
def test_router_tries_one_other_server_where_one_takes_nothing(message: str, kind: type[Exception]) -> None:
    async def main() -> None:
        fakes = [FakeTriton(CARD) for _ in range(3)]
        async with routing(*fakes) as router:
            for fake in fakes:
                fake.answer = _says(message)
            with pytest.raises(kind):
                await router.open(make_call(router))
            assert sum(len(fake.requests) for fake in fakes) == 2
            assert router.retries == {"unavailable": 1}
            for fake in fakes[1:]:
                fake.answer = tokens
            for _ in range(10):
                assert await ask(router) == " t0 t1 t2 t3"

    run(main())


def test_router_tries_nobody_else_for_a_fault_of_the_request_or_a_late_answer() -> None:
    async def main() -> None:
        fakes = [FakeTriton(CARD), FakeTriton(CARD)]
        async with routing(*fakes) as router:
            for message, kind in (
                ("[INVALID_ARG] seed: is negative", UpstreamRefusalError),
                ("[UNAVAILABLE] timeout: timeout_ms: is over", DeadlineError),
                ("[INTERNAL] a bug", EngineFaultError),
            ):
                before = sum(len(fake.requests) for fake in fakes)
                for fake in fakes:
                    fake.answer = _says(message)
                with pytest.raises(kind):
                    await router.open(make_call(router))
                assert sum(len(fake.requests) for fake in fakes) == before + 1

    run(main())


def test_router_asks_another_server_when_one_dies_before_its_first_byte() -> None:
    async def main() -> None:
        dying, well = FakeTriton(CARD, answer=_dies), FakeTriton(CARD)
        async with routing(dying, well) as router:
            for _ in range(10):
                assert await ask(router) == " t0 t1 t2 t3"
            assert 0 < router.retries["lost"] <= len(dying.requests)

    run(main())


def test_router_does_not_let_one_call_kill_server_after_server() -> None:
    async def main() -> None:
        fakes = [FakeTriton(CARD, answer=_dies) for _ in range(4)]
        async with routing(*fakes) as router:
            with pytest.raises(UpstreamLostError):
                await router.open(make_call(router))
            # The first time on a connection that may have been closed meanwhile, so that it is sent there again.
            assert 2 <= sum(len(fake.requests) for fake in fakes) <= 3
            assert sum(bool(fake.requests) for fake in fakes) == 2

    run(main())


def test_router_ends_a_call_that_has_killed_two_servers_for_good() -> None:
    """The connections are warm and the servers do not come back, so that no third one is asked."""

    async def main() -> None:
        fakes = [FakeTriton(CARD) for _ in range(3)]
        kills = []
        async with routing(*fakes) as router:
            for fake in fakes:

                def die(body: dict[str, Any], fake: FakeTriton = fake) -> Script:
                    kills.append(asyncio.ensure_future(fake.kill()))
                    return Script(tokens(body).events, hang_after=0)

                fake.answer = die
            with pytest.raises(UpstreamLostError):
                await router.open(make_call(router))
            assert sum(fake.is_listening for fake in fakes) == 1
            await asyncio.gather(*kills)

    run(main())


def test_router_says_which_server_lets_calls_wait() -> None:
    """A client that does not read, and probes, are no reason to call it so."""

    async def main() -> None:
        fake = FakeTriton(CARD)
        times = WatchTimes(probe_s=0.05, probe_down_s=0.02, models_s=0.05, timeout_s=0.05, silence_s=60)
        big = {"text_output": "x" * 300_000}
        async with routing(fake, times=times) as router:
            (before,) = router.status()
            assert (before.is_awaited, before.num_steps) == (False, 0)
            fake.answer = lambda body: Script([*tokens(body).events, *[big] * 100], hang_after=101)
            unread = await router.open(make_call(router))
            await asyncio.sleep(0.3)  # nothing shows that it does not come about
            assert not router.status()[0].is_awaited
            fake.answer = lambda body: Script(tokens(body).events, hang_after=1)
            waiting = await router.open(make_call(router))
            await until(lambda: router.status()[0].is_awaited)
            await waiting.close()
            await unread.close()
            await until(lambda: not router.status()[0].is_awaited)

    run(main())


def test_router_waits_for_the_only_server_to_come_back() -> None:
    async def main() -> None:
        fake = FakeTriton(CARD)
        async with routing(fake) as router:
            await fake.kill()
            calls = [asyncio.ensure_future(ask(router)) for _ in range(20)]
            await until(lambda: not router.is_ready)
            assert not any(call.done() for call in calls)
            await fake.start()
            assert await asyncio.gather(*calls) == [" t0 t1 t2 t3"] * 20
            await until(lambda: router.is_ready)
            assert router.status()[0].num_ejections == 1
            assert router.status()[0].num_in_flight == 0

    run(main())


def test_router_repeats_a_call_that_was_waiting_when_its_server_died() -> None:
    async def main() -> None:
        fake = FakeTriton(CARD)
        async with routing(fake) as router:
            fake.answer = _in_turn(lambda body: Script(tokens(body).events, hang_after=0), tokens)
            call = asyncio.ensure_future(ask(router))
            await until(lambda: bool(fake.running))
            await fake.kill()
            await fake.start()
            assert await call == " t0 t1 t2 t3"

    run(main())


@pytest.mark.parametrize(("deadline_s", "kind"), [(None, NoUpstreamError), (0.1, DeadlineError)])
def test_router_says_so_when_no_server_comes_back_in_time(deadline_s: float | None, kind: type[Exception]) -> None:
    async def main() -> None:
        fake = FakeTriton(CARD)
        async with routing(fake, patience_s=0.2) as router:
            await fake.kill()
            with pytest.raises(kind) as refused:
                await router.open(make_call(router, deadline_s=deadline_s))
            if isinstance(refused.value, NoUpstreamError):
                assert dict(refused.value.headers)[b"retry-after"] == b"1"
            with pytest.raises(kind):
                await router.call_json(
                    router.models()["demo"], "preprocessing/generate", b"{}",
                    deadline=None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s,
                )  # fmt: skip

    run(main())


def test_router_waits_for_a_model_that_is_being_loaded_again() -> None:
    async def main() -> None:
        fake = FakeTriton(CARD)
        slow = WatchTimes(probe_s=60, probe_down_s=0.02, models_s=60)
        async with routing(fake, times=slow) as router:
            fake.answer = _in_turn(
                lambda _: Script([{"error": "Request for unknown model: 'ensemble' is not found"}], status=404), tokens
            )
            opening = asyncio.ensure_future(router.open(make_call(router)))
            await until(lambda: router.retries["missing"] == 1)
            router._fleet._tell_news()
            assert await read_out(await opening)

    run(main())


def test_router_prefers_ready_servers_and_uses_others_when_there_is_none() -> None:
    async def main() -> None:
        draining, well = FakeTriton(CARD), FakeTriton(CARD)
        async with routing(draining, well) as router:
            draining.is_ready = False
            await until(lambda: [status.is_ready for status in router.status()] == [False, True])
            for _ in range(10):
                assert (await router.open(make_call(router))).server == well.name
            await well.kill()
            await until(lambda: not router.is_ready)
            assert await ask(router) == " t0 t1 t2 t3"
            assert len(draining.requests) == 1

    run(main())


def test_router_a_server_that_loads_something_beside_what_it_serves_is_ready() -> None:
    """Its models are read on, so that a new engine's card arrives; one that withdraws its readiness is not ready."""

    async def main() -> None:
        async with FakeTriton(CARD) as fake, routing(fake) as router:
            fake.only_loads, fake.is_ready = True, False
            begin = fake.num_probes
            fake.cards = [dataclasses.replace(CARD, created=CARD.created + 7)]
            answers = [await ask(router) for _ in range(3)]
            await until(lambda: router.models()[CARD.name].card.created == CARD.created + 7)
            assert fake.num_probes > begin
            assert (router.is_ready, answers) == (True, [" t0 t1 t2 t3"] * 3)
            fake.only_loads = False
            await until(lambda: not router.is_ready)

    run(main())


@pytest.mark.slow
def test_router_kill_of_one_of_two_servers_under_load_fails_its_running_streams_alone() -> None:
    """Plain calls and streams that have had no byte are all answered; running streams of the other server go on."""

    async def main() -> None:
        fakes = [FakeTriton(CARD), FakeTriton(CARD)]

        def paced(body: dict[str, Any]) -> Script:
            script = tokens(body)
            script.gap_s = 0.01
            return script

        for fake in fakes:
            fake.answer = paced
        outcomes: Counter[tuple[str, bool, str]] = Counter()
        is_over = False

        async def client(router: Router, streaming: bool) -> None:
            while not is_over:
                exchange = await router.open(make_call(router, streaming=streaming, max_tokens=20))
                try:
                    await read_out(exchange)
                    outcomes[exchange.server, streaming, "done"] += 1
                except UpstreamLostError:
                    outcomes[exchange.server, streaming, "lost"] += 1
                finally:
                    await exchange.close()

        async with routing(*fakes) as router:
            clients = [asyncio.ensure_future(client(router, index % 3 != 0)) for index in range(24)]
            dead, well = fakes
            await until(lambda: sum(outcomes.values()) > 50)
            await until(lambda: any(run.num_sent > 2 and run.body["stream"] for run in dead.running))
            begun = sum(run.num_sent > 0 and run.body["stream"] for run in dead.running)
            await dead.kill()
            await until(lambda: not router.status()[0].is_ready)
            before = outcomes[well.name, True, "done"]
            await until(lambda: outcomes[well.name, True, "done"] > before + 50)
            await dead.start()
            await until(lambda: router.status()[0].is_ready)
            again = outcomes[dead.name, True, "done"]
            await until(lambda: outcomes[dead.name, True, "done"] > again + 10)
            is_over = True
            await asyncio.gather(*clients)
            lost = {key: count for key, count in outcomes.items() if key[2] == "lost"}
            assert set(lost) <= {(dead.name, True, "lost")}
            assert 0 < sum(lost.values()) <= begun
            assert all(status.num_in_flight == 0 for status in router.status())

    run(main())


@pytest.mark.slow
def test_router_gives_up_calls_to_a_server_that_says_nothing_at_all() -> None:
    """A stopped process keeps its connections; a call that has had no byte is then made elsewhere."""

    async def main() -> None:
        hung, well = FakeTriton(CARD), FakeTriton(CARD)
        times = WatchTimes(probe_s=0.05, probe_down_s=0.02, models_s=0.05, timeout_s=1, silence_s=5)
        loop = asyncio.get_running_loop()
        async with routing(hung, well, times=times) as router:
            hung.answer = lambda body: Script(tokens(body).events, hang_after=1)
            well.is_ready = False
            await until(lambda: not router.status()[1].is_ready)
            stream = await router.open(make_call(router))
            hung.answer = lambda body: Script(tokens(body).events, hang_after=0)
            waiting = asyncio.ensure_future(ask(router))
            await until(lambda: len(hung.running) == 2)
            # As long as the server answers anything, a call may wait for as long as it likes.
            begin, probes = loop.time(), hung.num_probes
            await until(lambda: loop.time() - begin > times.silence_s and hung.num_probes > probes + 10)
            assert not waiting.done()
            well.is_ready = True
            hung.is_silent = True
            assert await waiting == " t0 t1 t2 t3"
            with pytest.raises(UpstreamLostError):
                await read_out(stream)
            await stream.close()
            hung.is_silent = False

    run(main())


def test_router_starts_without_any_server_and_finds_it_later() -> None:
    async def main() -> None:
        fake = FakeTriton(CARD)
        await fake.start()
        await fake.kill()
        router = Router([fake.address], times=QUICK)
        await router.start()
        try:
            assert not router.is_ready
            assert not router.models()
            await fake.start()
            await until(lambda: router.is_ready)
            assert await ask(router) == " t0 t1 t2 t3"
        finally:
            await router.close()
            await fake.kill()

    run(main())


def test_call_json_reaches_another_model_and_tries_another_server() -> None:
    async def main() -> None:
        dead, well = FakeTriton(CARD), FakeTriton(CARD)
        well.preprocess = lambda body: {"input_ids": [len(str(body["text_input"]))]}
        async with routing(dead, well) as router:
            await dead.kill()
            model = router.models()["demo"]
            for _ in range(6):
                body = await router.call_json(model, f"{model.preprocessing}/generate", b'{"text_input": "four"}')
                assert body == b'{"input_ids": [4]}'
            well.preprocess = lambda _: {"error": "[INVALID_ARG] text_input: is missing"}
            with pytest.raises(UpstreamRefusalError):
                await router.call_json(model, f"{model.preprocessing}/generate", b"{}")

    run(main())


def test_call_json_asks_each_server_for_its_preprocessing_by_the_name_it_has_there() -> None:
    async def main() -> None:
        async with routing(FakeTriton(CARD)) as router:
            model = router.models()["demo"]
            # As another server would know the model, which the call may have been made for.
            elsewhere = dataclasses.replace(model, preprocessing="preprocessing_2")
            body = await router.call_json(elsewhere, "preprocessing_2/generate", b"{}")
            assert json.loads(body) == {"input_ids": [1, 2, 3]}

    run(main())
