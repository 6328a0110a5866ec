"""A gateway whose process is stopped, behind a balancer that asks it whether it is well."""

from __future__ import annotations

import asyncio
import signal

from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run, until
from tests.gateway.process import GatewayProcess
from tests.programs import needs
from tests.resilience.balancers.programs import HAPROXY, balancing
from tests.resilience.load import loading
from tests.resilience.pairs import paced


@needs("haproxy", "haproxy")
def test_stopped_gateway_is_left_alone_and_finishes_what_it_has_when_it_goes_on() -> None:
    async def test() -> None:
        async with (
            FakeTriton(answer=paced(0.02)) as fake,
            GatewayProcess(fake) as one,
            GatewayProcess(fake) as other,
            balancing(HAPROXY, [(one.port, one.private_port), (other.port, other.private_port)]) as port,
            loading(port) as load,
            loading(port) as later,
        ):
            load.begin(10, stream=True, max_tokens=30, every_s=0.1)
            load.begin(10, stream=False, max_tokens=2, every_s=0.1)
            await until(lambda: load.num_answered > 50)
            one.signal(signal.SIGSTOP)
            await asyncio.sleep(4)  # two looks of the balancer, each with a timeout
            later.begin(10, stream=False, max_tokens=2, every_s=0.1)
            await until(lambda: later.num_answered > 100)
            await later.end()
            assert later.lost == {}
            assert max(later.durations) < 2
            one.signal(signal.SIGCONT)
            await load.end()
            assert load.lost == {}
            assert (await one.ask("/ready", private=True)).status == 200

    run(test)
