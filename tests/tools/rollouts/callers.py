"""Callers of a gateway, who ask again and again, each for something else.

Owns what they ask and which statuses they got. Never judges an answer.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import TracebackType

from tests.gateway.http.room import LIMIT_S
from tests.gateway.process import JSON, GatewayProcess, completion

_PAUSE_S = 0.02


class Callers:
    """Some callers at the same time, for as long as the context is entered.

    Without keys the beginning of a prompt decides on the side, so each request is another caller's.

    Args:
        gateway: whom they ask.
        number: of them.
    """

    def __init__(self, gateway: GatewayProcess, number: int = 6) -> None:
        self._gateway = gateway
        self._number = number
        self._count = 0
        self._is_over = False
        #: Answers by status; a stream that did not end as one does has the status 0.
        self.statuses: Counter[int] = Counter()

    async def __aenter__(self) -> Callers:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._ask_again_and_again()) for _ in range(self._number)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), LIMIT_S)

    async def _ask_again_and_again(self) -> None:
        client = await self._gateway.connect()
        try:
            while not self._is_over:
                self._count += 1
                body = completion(prompt=f"{self._count} times", max_tokens=4, stream=self._count % 4 > 0)
                client.send("POST", "/v1/completions", json.dumps(body).encode(), JSON)
                reply = await asyncio.wait_for(client.reply(), LIMIT_S)
                is_whole = not body["stream"] or reply.status != 200 or reply.body.endswith(b"data: [DONE]\n\n")
                self.statuses[reply.status if is_whole else 0] += 1
                # The processes of the test share a core or two.
                await asyncio.sleep(_PAUSE_S)
        finally:
            client.close()
