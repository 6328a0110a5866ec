"""A bare uvicorn that sends ready chunks, for the benchmark of the gateway: `PORT NUM_CHUNKS GAP_S`.

Owns what no gateway in Python can be cheaper than: one `send` of a ready text for each chunk. Never reads a body.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn

_CHUNK = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"demo","choices":[{"index":0,"delta":{"content":" t11"},"logprobs":null,"finish_reason":null}]}\n\n'
)


def main() -> None:
    """Serve until it is killed."""
    port, num_chunks, gap = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for _ in range(num_chunks):
            await asyncio.sleep(gap)
            await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    uvicorn.run(
        application, port=port, log_level="critical", access_log=False, loop="uvloop", http="httptools", lifespan="off"
    )


if __name__ == "__main__":
    main()
