"""A tritonserver that is none, as a process, for the benchmark of the gateway: `PORT METRICS_PORT GAP_S`.

Owns the pace: a token each GAP_S seconds, or all at once. A request with `ignore_eos` gets its first token and then
nothing more, until its client leaves. Never computes anything.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from tests.fakes.triton_http import FakeTriton, Script, tokens
from trident_ensemble.contract.model_card import ModelCard

CARD = ModelCard("demo", 1_700_000_000, 4096, digest="d0", takes_messages=True)


def main() -> None:
    """Serve until it is killed."""
    port, metrics_port, gap = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

    def answer(request: dict[str, Any]) -> Script:
        script = tokens(request)
        script.gap_s = gap
        if request.get("ignore_eos"):
            script.hang_after = 1
        return script

    async def run() -> None:
        async with FakeTriton(CARD, answer=answer, port=port, metrics_port=metrics_port):
            await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
