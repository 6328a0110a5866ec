"""What a load needs of a server, whatever its protocol.

Owns the two interfaces, the description of a target and the choice of the protocol's module, which is imported when it
is chosen. Never sends anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from trident_tools.load.client_records import ClientStream
from trident_tools.load.prompts import Prompt

#: Protocol -> where its server listens by default.
DEFAULT_URLS: Mapping[str, str] = {
    "grpc": "localhost:8001",
    "generate_stream": "http://localhost:8000",
    "openai": "http://localhost:9000/v1",
}


class FailedRequestError(Exception):
    """A request that the server, or the way to it, did not answer; the text is its message. Ends as a record."""


@dataclass(frozen=True)
class Target:
    """Whom to ask, and what every request carries.

    Args:
        protocol: one of `DEFAULT_URLS`.
        url: as the protocol wants it.
        model: None for the first that an OpenAI-compatible server lists.
        ignore_eos: ask for `max_tokens` tokens whatever the model says.
        fields: further fields of every request.
    """

    protocol: str
    url: str
    model: str | None
    ignore_eos: bool
    fields: Mapping[str, Any]


class Client(Protocol):
    """One user's connection: one request at a time."""

    def ask(self, prompt: Prompt, stream: ClientStream) -> None:
        """Send a prompt and note its responses until the last one.

        Raises:
            FailedRequestError: it was not answered in full.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; a request under way is cancelled."""
        ...


class Service(Protocol):
    """A server that has been found to answer."""

    @property
    def model(self) -> str:
        """The model that is asked."""
        ...

    def client(self) -> Client:
        """A connection of its own."""
        ...

    def close(self) -> None:
        """Let go of what clients share; the last thing to be called."""
        ...


def open_service(target: Target) -> Service:
    """The target's server.

    Raises:
        ServerError: it does not answer, does not serve the model, or does not take the fields.
    """
    module = import_module(f"trident_tools.load.{target.protocol}_service")
    return cast("Service", module.open_service(target))
