"""The whole deployment under concurrent gRPC streams, measured at the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc.aio as grpcclient

from tests.e2e.clients import make_inputs


@dataclass(frozen=True)
class ServedRun:
    """Seconds from the first send to the last token; responses received; each stream's time to first token, s."""

    seconds: float
    num_responses: int
    first_token_seconds: list[float]


def run_served(url: str, prompts: list[str], max_tokens: int) -> ServedRun:
    """All prompts at once, a stream each, greedy, `max_tokens` each."""
    return asyncio.run(_run(url, prompts, max_tokens))


async def _run(url: str, prompts: list[str], max_tokens: int) -> ServedRun:
    async with grpcclient.InferenceServerClient(url) as client:
        start = time.perf_counter()
        outcomes = await asyncio.gather(*(_stream(client, prompt, max_tokens, start) for prompt in prompts))
        seconds = time.perf_counter() - start
    if any(num_tokens != max_tokens for _, num_tokens, _ in outcomes):
        raise AssertionError("a stream lost tokens")
    return ServedRun(seconds, sum(outcome[0] for outcome in outcomes), [outcome[2] for outcome in outcomes])


async def _stream(client: Any, prompt: str, max_tokens: int, start: float) -> tuple[int, int, float]:
    fields = {"text_input": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "ensemble", "inputs": make_inputs(grpcclient, fields)}

    num_responses, num_tokens, first = 0, 0, 0.0
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        first = first or time.perf_counter() - start
        num_responses += 1
        num_tokens += result.as_numpy("output_ids").size
    return num_responses, num_tokens, first
