"""A gateway before a tritonserver that is none, with a relay that remembers what clients were answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fakes.triton_http import FakeTriton, on_thread
from tests.gateway.clients.answers import CARD, speak
from tests.gateway.clients.environments import judge
from tests.gateway.clients.gateways import RunningGateway, gateway
from tests.gateway.clients.relay import Exchange, Relay, relaying


@dataclass(frozen=True)
class Served:
    """Everything that a client meets."""

    gateway: RunningGateway
    relay: Relay
    triton: FakeTriton

    @property
    def arguments(self) -> tuple[str, str, str, str]:
        """What every script of conversations is given."""
        return self.relay.url, self.gateway.key, self.gateway.spent_key, CARD.name

    def judged(self) -> tuple[list[Exchange], list[str]]:
        """Return what was answered since the last call, and what is wrong with it.

        A client that leaves once it knows the status has cut an answer of which there is nothing to judge.
        """
        exchanges = [exchange for exchange in self.relay.take() if exchange.is_complete or exchange.body]
        problems = judge([exchange.as_json() for exchange in exchanges])
        return exchanges, [
            f"{exchange.method} {exchange.path} {exchange.status} {exchange.request}: {problem}"
            for exchange, listed in zip(exchanges, problems, strict=True)
            for problem in listed
        ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway for the clients of one module."""
    triton = FakeTriton(CARD, answer=speak)
    with on_thread(triton), gateway(tmp_path_factory.mktemp("gateway"), [triton.address]) as running:
        with relaying(running.port) as relay:
            yield Served(running, relay, triton)
