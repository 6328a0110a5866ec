"""The servers of a name in DNS: they join, leave, and stay where it cannot be looked up."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.upstream.driver import QUICK, RoutesFile, ask, make_call, read_out, routing, run, until
from trident_ensemble.contract.routes import Routes, RouteServer, Side, render_routes
from trident_gateway.errors import ModelNotFoundError
from trident_gateway.settings import ServerAddress, ServerName
from trident_gateway.upstream.dns import DnsServers, resolve

NAME = ServerName("pods", 8000, 9002)


class Zone:
    """A resolver, which finds what a test has put there; an exception is raised."""

    def __init__(self, *addresses: str) -> None:
        self.answer: list[str] | OSError = list(addresses)
        self.num_looks = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        """Look a name up."""
        assert (host, port) == (NAME.host, NAME.port)
        self.num_looks += 1
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def test_dns_servers_have_the_ports_of_the_name_and_brackets_where_they_need_them() -> None:
    async def main() -> None:
        servers = DnsServers(NAME, lambda: None, Zone("fd00::7", "10.0.0.7", "10.0.0.7"), 60)
        await servers.look()
        assert servers.servers == (
            ServerAddress("http://10.0.0.7:8000", "http://10.0.0.7:9002"),
            ServerAddress("http://[fd00::7]:8000", "http://[fd00::7]:9002"),
        )

    run(main())


ADDRESSES = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]), max_size=4)
ANSWERS = st.lists(ADDRESSES | st.sampled_from([OSError("away"), socket.gaierror(-2, "unknown")]), max_size=8)


@settings(deadline=None)
@given(ANSWERS)
def test_dns_servers_are_those_of_the_last_answer_that_had_any(answers: list[list[str] | OSError]) -> None:
    async def main() -> None:
        zone, changes = Zone(), [0]

        def change() -> None:
            changes[0] += 1

        servers = DnsServers(NAME, change, zone, 60)
        last: set[str] = set()
        for answer in answers:
            zone.answer = answer
            failures, changed = servers.num_failures, changes[0]
            await servers.look()
            found = set() if isinstance(answer, OSError) else set(answer)
            assert servers.num_failures == failures + (not found)
            assert changes[0] == changed + (bool(found) and found != last)
            last = found or last
            assert {server.url for server in servers.servers} == {f"http://{address}:8000" for address in last}

    asyncio.run(main())


def test_resolve_finds_this_machine_once() -> None:
    """By the system's own means; a name that has an address of each kind has servers of one kind."""

    async def main() -> None:
        assert await resolve("127.0.0.1", 8000) == ["127.0.0.1"]
        assert await resolve("::1", 8000) == ["::1"]
        assert len(await resolve("localhost", 8000)) == 1
        with pytest.raises(socket.gaierror):
            await resolve("no-such-name.invalid", 8000)

    run(main())


def test_router_follows_a_name_whose_servers_join_and_leave(caplog: pytest.LogCaptureFixture) -> None:
    """All of them listen at one port on different addresses, as pods do; one that leaves ends what it has."""

    async def main() -> None:
        first = FakeTriton()
        await first.start()
        name = ServerName("pods", first.port, first.metrics_port)
        second = FakeTriton(port=first.port, metrics_port=first.metrics_port, host="127.0.0.2")
        zone = Zone("127.0.0.1")

        async def look(_host: str, _port: int) -> list[str]:
            return await zone(NAME.host, NAME.port)

        async with second, routing(server_dns=name, resolve=look) as router:
            assert router.is_ready
            gate = asyncio.Event()
            first.answer = lambda body: Script(tokens(body).events, gates={1: gate})
            running = await router.open(make_call(router))
            zone.answer = ["127.0.0.2", "127.0.0.1"]
            await until(lambda: [status.is_ready for status in router.status()] == [True, True])
            zone.answer = ["127.0.0.2"]
            await until(lambda: not router.status()[0].is_ready)
            for _ in range(6):
                assert await ask(router) == " t0 t1 t2 t3"
            assert len(second.requests) == 6
            zone.answer = OSError("nobody answers")
            looks = zone.num_looks
            await until(lambda: zone.num_looks > looks + 2)
            assert await ask(router) == " t0 t1 t2 t3"
            assert router.membership.num_dns_failures >= 2
            gate.set()
            assert len(await read_out(running)) == 4
            await until(lambda: [status.server for status in router.status()] == [second.name])
            await until(lambda: first.num_connections == 0)
        await first.kill()

    run(main())
    assert caplog.text.count("cannot be looked up") == 1


def test_router_answers_calls_while_all_addresses_of_a_name_change() -> None:
    """The servers that leave serve until one that comes has said what it has; what waits for them goes to that one."""

    async def main() -> None:
        first = FakeTriton()
        await first.start()
        second = FakeTriton(port=first.port, metrics_port=first.metrics_port, host="127.0.0.2")
        zone = Zone("127.0.0.1")

        async def look(_host: str, _port: int) -> list[str]:
            return await zone(NAME.host, NAME.port)

        name = ServerName("pods", first.port, first.metrics_port)
        async with routing(server_dns=name, resolve=look) as router:
            zone.answer = ["127.0.0.2"]  # where nothing listens yet
            await until(lambda: len(router.status()) == 2)
            assert router.is_ready
            assert await ask(router) == " t0 t1 t2 t3"
            await first.kill()
            waiting = asyncio.ensure_future(ask(router))
            await until(lambda: not router.is_ready)
            assert router.models()  # so nobody is refused who could wait
            async with second:
                assert await waiting == " t0 t1 t2 t3"
                await until(lambda: [status.server for status in router.status()] == [second.name])
                assert await ask(router) == " t0 t1 t2 t3"

    run(main())


@pytest.mark.parametrize("has_others", [True, False])
def test_router_knows_no_model_as_missing_while_a_server_has_not_said_what_it_has(has_others: bool) -> None:
    """As when the last server that had it has gone, and those in its place were not heard yet."""

    async def main() -> None:
        first, zone = FakeTriton(), Zone("127.0.0.1")
        await first.start()
        second = FakeTriton(port=first.port, metrics_port=first.metrics_port, host="127.0.0.2")

        async def look(_host: str, _port: int) -> list[str]:
            return await zone(NAME.host, NAME.port)

        name = ServerName("pods", first.port, first.metrics_port)
        async with routing(server_dns=name, resolve=look, times=replace(QUICK, handover_s=0)) as router:
            call = make_call(router)
            if has_others:
                zone.answer = ["127.0.0.2"]
                await until(lambda: not router.models())
                waiting = asyncio.ensure_future(router.open(call))
                await asyncio.sleep(0.1)  # nothing shows that it is not refused
                async with second:
                    assert len(await read_out(await waiting)) == 4
            else:
                first.cards.clear()
                await until(lambda: not router.models())
                with pytest.raises(ModelNotFoundError):
                    await router.open(call)
        await first.kill()

    run(main())


def test_router_takes_a_server_back_that_was_about_to_leave() -> None:
    async def main() -> None:
        fake, zone = FakeTriton(), Zone("127.0.0.1")
        await fake.start()

        async def look(_host: str, _port: int) -> list[str]:
            return await zone(NAME.host, NAME.port)

        name = ServerName("pods", fake.port, fake.metrics_port)
        async with routing(server_dns=name, resolve=look, times=replace(QUICK, handover_s=0)) as router:
            fake.answer = lambda body: Script(tokens(body).events, hang_after=1)
            running = await router.open(make_call(router))
            zone.answer = ["127.0.0.9"]
            await until(lambda: len(router.status()) == 2)
            assert not router.models()
            zone.answer = ["127.0.0.1"]
            await until(lambda: router.is_ready)
            await until(lambda: [status.num_in_flight for status in router.status()] == [1])
            fake.answer = tokens
            assert await ask(router) == " t0 t1 t2 t3"
            await running.close()
        await fake.kill()

    run(main())


def test_router_leaves_a_canary_its_servers_though_the_name_has_them_too(tmp_path: Path) -> None:
    async def main() -> None:
        fake, zone, routes = FakeTriton(), Zone("127.0.0.1"), RoutesFile(tmp_path / "routes")
        await fake.start()

        async def look(_host: str, _port: int) -> list[str]:
            return await zone(NAME.host, NAME.port)

        name = ServerName("pods", fake.port, fake.metrics_port)
        async with routing(server_dns=name, resolve=look, routes=routes) as router:
            assert [status.side for status in router.status()] == ["stable"]
            there = RouteServer(fake.address.url, fake.address.metrics_url.replace("127.0.0.1", "localhost"))
            routes.write_text(render_routes(Routes(None, Side((there,)), 50)))
            await until(lambda: [status.side for status in router.status()] == ["canary"])
            routes.write()
            await until(lambda: [status.side for status in router.status()] == ["stable"])
        await until(lambda: fake.num_connections == 0)  # nobody else looks at it
        await fake.kill()

    run(main())
