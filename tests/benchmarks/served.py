"""The whole deployment under concurrent gRPC streams, measured at the client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc.aio as grpcclient

from tests.e2e.clients import make_inputs


@dataclass(frozen=True)
class ServedStream:
    """One stream: when each of its responses came, in seconds since the first request was sent, and its tokens."""

    sent_at: float
    times: list[float]
    num_tokens: list[int]

    @property
    def gaps(self) -> list[float]:
        """Seconds between two responses."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]

    @property
    def token_gaps(self) -> list[float]:
        """Seconds between two tokens; those that came in one response came 0 s apart."""
        gaps = []
        for gap, num_tokens in zip(self.gaps, self.num_tokens[1:], strict=True):
            gaps += [gap, *[0.0] * (num_tokens - 1)] if num_tokens else []
        return gaps


@dataclass(frozen=True)
class ServedRun:
    """Seconds from the first send to the last token, and the streams."""

    seconds: float
    streams: list[ServedStream]

    @property
    def num_responses(self) -> int:
        """How many responses came in all."""
        return sum(len(stream.times) for stream in self.streams)

    @property
    def num_tokens(self) -> int:
        """How many tokens came in all."""
        return sum(sum(stream.num_tokens) for stream in self.streams)

    @property
    def first_token_seconds(self) -> list[float]:
        """Each stream's time to its first token."""
        return [stream.times[0] - stream.sent_at for stream in self.streams]


def run_served(url: str, prompts: list[str], max_tokens: int, *, num_users: int = 0, **fields: Any) -> ServedRun:
    """Stream an answer to each prompt, greedy, of `max_tokens` each.

    Args:
        url: of tritonserver's gRPC port.
        prompts: what is asked.
        max_tokens: of each answer.
        num_users: how many prompts are asked at a time; 0 for all of them.
        fields: further inputs of each request.
    """
    asked = {"max_tokens": max_tokens, "stream": True, "ignore_eos": True, **fields}
    return asyncio.run(_run(url, prompts, asked, num_users or len(prompts)))


async def _run(url: str, prompts: list[str], fields: dict[str, Any], num_users: int) -> ServedRun:
    waiting = iter(prompts)
    async with grpcclient.InferenceServerClient(url) as client:
        start = time.perf_counter()

        async def user() -> list[ServedStream]:
            return [await _stream(client, {"text_input": prompt, **fields}, start) for prompt in waiting]

        streams = [stream for own in await asyncio.gather(*(user() for _ in range(num_users))) for stream in own]
        seconds = time.perf_counter() - start
    if len(streams) != len(prompts) or any(sum(stream.num_tokens) != fields["max_tokens"] for stream in streams):
        raise AssertionError("a stream lost tokens")
    return ServedRun(seconds, streams)


async def _stream(client: Any, fields: dict[str, Any], start: float) -> ServedStream:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "ensemble", "inputs": make_inputs(grpcclient, fields)}

    stream = ServedStream(time.perf_counter() - start, [], [])
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        stream.times.append(time.perf_counter() - start)
        stream.num_tokens.append(result.as_numpy("output_ids").size)
    return stream
