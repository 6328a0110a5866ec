"""The trial: a canary that answers anything wrong is found out, through a real gateway in front of it alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.process import GatewayProcess
from tests.ports import free_ports
from trident_ensemble.contract.errors import ConfigError, ServerError
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.routes import RouteServer
from trident_tools.rollouts.api_client import ApiClient
from trident_tools.rollouts.door import door_of_address, door_of_server
from trident_tools.rollouts.trial import TrialError, compare_digests, digests, try_model

CHATTY = ModelCard("org/chatty", 1_700_000_000, 4096, digest="d1", takes_messages=True)
PLAIN = ModelCard("plain", 1_700_000_000, 4096, digest="d2")


def _nothing() -> None:
    """Find nothing to stop for."""


def _changed(**fields: object) -> Callable[[dict[str, Any]], Script]:
    """Return an answer whose last event says something else."""

    def answer(request: dict[str, Any]) -> Script:
        events = list(tokens(request).events)
        return Script([*events[:-1], {**events[-1], **fields}])

    return answer


def _empty(request: dict[str, Any]) -> Script:
    """Answer with an end and nothing before it, as a model does whose first token is the wrong one."""
    end = {"text_output": "", "output_ids": [], "finish_reason": "stop", "num_output_tokens": 0}
    return Script([{**tokens(request).events[-1], **end}])


def _of_kind(is_stream: bool, answer: Callable[[dict[str, Any]], Script]) -> Callable[[dict[str, Any]], Script]:
    return lambda request: answer(request) if bool(request.get("stream")) == is_stream else tokens(request)


@pytest.mark.slow
def test_trial_finds_each_fault_and_passes_a_good_canary() -> None:
    async def check() -> None:
        async with FakeTriton(CHATTY, PLAIN) as canary, GatewayProcess(canary, options=("--quiet",)) as gateway:
            client = ApiClient(f"http://127.0.0.1:{gateway.port}")

            async def tried(name: str) -> list[str]:
                return await asyncio.to_thread(try_model, client, name, _nothing)

            assert await asyncio.to_thread(digests, client) == {"org/chatty": "d1", "plain": "d2"}
            both = ["completions", "completions streamed"]
            assert await tried("org/chatty") == [*both, "chat", "chat streamed", "tokenize"]
            # A model without a chat template has no chats to answer.
            assert await tried("plain") == [*both, "tokenize"]
            for is_stream, answer, problem in (
                (False, lambda _: refusal("[INTERNAL] a bug"), "status 500"),
                (True, lambda _: refusal("[INVALID_ARG] max_tokens: must be at least 9"), "status 400"),
                (True, lambda request: Script(tokens(request).events, break_after=2), r"without \[DONE\]"),
                (True, _changed(finish_reason="length", num_output_tokens=3), "7 tokens with finish_reason length"),
                (True, _empty, "0 tokens with finish_reason stop"),
                (False, _changed(finish_reason="stop", num_output_tokens=999), "999 tokens"),
            ):
                canary.answer = _of_kind(is_stream, answer)
                with pytest.raises(TrialError, match=problem):
                    await tried("plain")
            canary.answer = tokens
            canary.preprocess = lambda _: {"input_ids": []}
            with pytest.raises(TrialError, match="/tokenize"):
                await tried("plain")

            def stop() -> None:
                raise InterruptedError

            with pytest.raises(InterruptedError):
                await asyncio.to_thread(try_model, client, "plain", stop)

    asyncio.run(check())


@pytest.mark.slow
def test_door_leads_to_one_server_and_closes() -> None:
    async def check() -> None:
        async with FakeTriton(PLAIN) as canary:
            address = canary.address
            server = RouteServer(address.url, address.metrics_url)

            def go_through() -> ApiClient:
                with door_of_server(server, 60.0, _nothing) as door:
                    assert digests(door.client) == {"plain": "d2"}
                    with door_of_address(f"http://127.0.0.1:{door.client.port}", None, 1.0, _nothing) as same:
                        assert same.client.is_ready()
                    return door.client

            assert not (await asyncio.to_thread(go_through)).is_ready()

    asyncio.run(check())


def test_door_of_a_server_that_is_not_there_says_so() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServerError, match=f"http://127.0.0.1:{port}: no gateway"):
        with door_of_address(f"http://127.0.0.1:{port}", None, 0.0, _nothing):
            raise AssertionError


def test_digests_that_differ_are_said_model_by_model() -> None:
    assert compare_digests({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == []
    assert compare_digests({"a": "1", "b": "2"}, {"a": "3", "c": "2"}) == [
        "c: the canary does not serve it",
        "b: only the canary serves it",
        "a: tokenizer or chat template differ (digest 1 instead of 3)",
    ]


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://a:1", "http://a/v1", "http://a:x"])
def test_client_refuses_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        ApiClient(url)
