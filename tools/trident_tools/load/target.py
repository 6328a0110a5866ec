"""The target of a load: a server, whatever its protocol.

Owns the two interfaces, the description of a target, and the choice of the protocol's module, which is imported when it
is chosen. Never sends anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from trident_tools.load.client_records import ClientStream
from trident_tools.load.prompts import Prompt

#: Protocol -> the URL at which its server listens by default.
DEFAULT_URLS: Mapping[str, str] = {
    "grpc": "localhost:8001",
    "generate_stream": "http://localhost:8000",
    "openai": "http://localhost:9000/v1",
}


class FailedRequestError(Exception):
    """A request that was not answered in full; the message is the server's or the network's. It ends as a record."""


@dataclass(frozen=True)
class Target:
    """The server to ask, and what every request carries.

    Args:
        protocol: one of the keys of `DEFAULT_URLS`.
        url: the URL in the form of the protocol.
        model: the model; None for the first that an OpenAI-compatible server lists.
        ignore_eos: ask for exactly `max_tokens` tokens.
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
        """Send a prompt, and note its responses until the last one.

        Raises:
            FailedRequestError: the request was not answered in full.
        """
        ...

    def close(self) -> None:
        """Close the connection; a request under way is cancelled."""
        ...


class Service(Protocol):
    """A server that has been found to answer."""

    @property
    def model(self) -> str:
        """The model that is asked."""
        ...

    def client(self) -> Client:
        """Return a connection for one user."""
        ...

    def close(self) -> None:
        """Close what clients share; to be called last."""
        ...


def open_service(target: Target) -> Service:
    """Open the server of a target.

    Raises:
        ServerError: the server does not answer, does not serve the model, or does not take the fields.
    """
    module = import_module(f"trident_tools.load.{target.protocol}_service")
    return cast("Service", module.open_service(target))
