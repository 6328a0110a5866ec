"""The order of a drain, by random histories of requests and signals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.http.room import LIMIT_S, run, until
from trident_gateway.http.drain import Drain
from trident_gateway.http.lifecycle import Lifecycle, Phase, RunningRequest

#: When something happens, in steps of the loop.
MOMENT = st.integers(0, 40)


async def _rounds() -> None:
    """Let everything run that is ready to."""
    for _ in range(20):
        await asyncio.sleep(0)


async def work(lifecycle: Lifecycle, start: int, length: int, ended: list[str]) -> None:
    """Run one request, as the application does."""
    for _ in range(start):
        await asyncio.sleep(0)
    if lifecycle.phase is Phase.REFUSING:
        ended.append("refused")
        return
    task = asyncio.current_task()
    assert task is not None
    request = RunningRequest(task)
    lifecycle.enter(request)
    try:
        for _ in range(length):
            await asyncio.sleep(0)
        request.is_answered = True
        ended.append("answered")
    except asyncio.CancelledError:
        ended.append("cut" if request.is_stopped else "lost")
    finally:
        lifecycle.leave(request)


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(st.tuples(MOMENT, MOMENT), max_size=12),
    begin=MOMENT,
    signals=st.lists(MOMENT, max_size=2),
    timeout_s=st.sampled_from([0.0, 0.001, 60.0]),
)
def test_drain_gives_every_request_one_end(
    requests: list[tuple[int, int]], begin: int, signals: list[int], timeout_s: float
) -> None:
    async def test() -> None:
        lifecycle = Lifecycle()
        drain = Drain(lifecycle, 0.0, timeout_s, lambda _: None)
        ended: list[str] = []

        async def after(steps: int, action: Any) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)
            action()

        tasks = [asyncio.ensure_future(work(lifecycle, start, length, ended)) for start, length in requests]
        tasks.append(asyncio.ensure_future(after(begin, drain.begin)))
        tasks += [asyncio.ensure_future(after(moment, drain.take_signal)) for moment in signals]
        num_cut = await drain.run()
        assert lifecycle.num_running == 0
        assert lifecycle.phase is Phase.REFUSING
        await asyncio.gather(*tasks)
        assert len(ended) == len(requests)
        assert ended.count("cut") == num_cut
        assert "lost" not in ended
        if timeout_s == 60.0 and len(signals) < 2:
            assert num_cut == 0

    run(test)


def test_drain_serves_during_the_delay_and_refuses_after_it() -> None:
    async def test() -> None:
        lifecycle = Lifecycle()
        said: list[str] = []
        phases = [lifecycle.phase]
        drain = Drain(lifecycle, 0.2, 60.0, said.append)
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(drain.run())
        await _rounds()
        assert not running.done()
        drain.begin()
        began = loop.time()
        phases.append(lifecycle.phase)
        await until(lambda: lifecycle.phase is not Phase.LEAVING)
        assert loop.time() - began > 0.19  # the timer of the loop counts milliseconds
        assert await asyncio.wait_for(running, LIMIT_S) == 0
        phases.append(lifecycle.phase)
        assert phases == [Phase.SERVING, Phase.LEAVING, Phase.REFUSING]
        assert len(said) == 1

    run(test)


@pytest.mark.parametrize("first", ["begin", "take_signal"])
def test_drain_is_skipped_by_the_second_signal_alone(first: str) -> None:
    async def test() -> None:
        drain = Drain(Lifecycle(), 60.0, 60.0, lambda _: None)
        running = asyncio.ensure_future(drain.run())
        getattr(drain, first)()
        drain.begin()
        await _rounds()
        drain.take_signal()
        if first == "begin":
            await _rounds()
            assert not running.done()
            drain.take_signal()
        assert await asyncio.wait_for(running, LIMIT_S) == 0

    run(test)
