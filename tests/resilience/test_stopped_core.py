"""A core whose process is stopped, as the gateway sees it: Triton refuses for it, in words of its own."""

from __future__ import annotations

import pytest

from tests.fakes.triton_http import FakeTriton, refusal
from tests.gateway.upstream.driver import ask, make_call, routing, run
from trident_gateway.errors import EngineFaultError

#: Of Triton 2.51, about a second after a request came for a process that had been stopped.
NOT_HEALTHY = "Stub process 'core_0_0' is not healthy."


def test_stopped_core_takes_no_request_that_another_server_can_answer() -> None:
    async def main() -> None:
        stopped, well = FakeTriton(answer=lambda _: refusal(NOT_HEALTHY)), FakeTriton()
        async with routing(stopped, well) as router:
            for _ in range(10):
                assert await ask(router) == " t0 t1 t2 t3"
            assert stopped.requests
            well.answer = lambda _: refusal(NOT_HEALTHY)
            with pytest.raises(EngineFaultError):
                await router.open(make_call(router))

    run(main())
