"""What every endpoint works with, and what each begins with.

Owns the way from a request to its caller, its fields and its model. Never knows which fields there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import msgspec

from trident_gateway.access.authenticator import Authenticator
from trident_gateway.api.body import decode_body
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.callers import Caller
from trident_gateway.errors import ModelNotFoundError, NoUpstreamError
from trident_gateway.limits.limiter import Limiter
from trident_gateway.settings import GatewaySettings
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import ServedModel

Value = TypeVar("Value", bound=msgspec.Struct)

_MAX_IGNORED_BYTES = 2048


@dataclass(frozen=True)
class ApiContext:
    """The things that every endpoint works with.

    Args:
        settings: of the gateway.
        router: knows the models and their servers.
        authenticator: knows the callers.
        limiter: bounds what they may use.
    """

    settings: GatewaySettings
    router: Router
    authenticator: Authenticator
    limiter: Limiter

    async def admit(self, request: HttpRequest) -> Caller:
        """Return who a request comes from.

        Raises:
            AuthenticationError: from nobody who is known.
        """
        caller = await self.authenticator.authenticate(request.header("authorization"))
        request.record.key_id, request.record.tenant = caller.key_id, caller.tenant
        return caller

    async def read(self, request: HttpRequest, out: AnswerSink, kind: type[Value]) -> Value:
        """Return a request's fields; unknown ones that are ignored are listed in a header of the answer.

        Raises:
            ApiError: the body cannot be read, or is not of this kind.
        """
        fields, ignored = decode_body(await request.body(), kind, allow_unknown=self.settings.allow_unknown_fields)
        if ignored:
            listed = ",".join(ignored).encode("ascii", "backslashreplace")
            printable = bytes(byte if 0x20 < byte < 0x7F else ord("?") for byte in listed)
            out.add_headers([(b"x-trident-ignored", printable[:_MAX_IGNORED_BYTES])])
        return fields

    def find(
        self, request: HttpRequest, caller: Caller, name: str, conversation: Callable[[], bytes] = bytes
    ) -> ServedModel:
        """Return the model of a name, if the caller may use it; from then on the request counts as one to this model.

        Args:
            request: the request.
            caller: whose key decides on which side of a rollout the model is looked for.
            name: one of the model's.
            conversation: returns what decides where there is no key; called at most once.

        Raises:
            ModelNotFoundError: it may not, or there is none.
            NoUpstreamError: no server has said yet which models there are.
        """

        @cache
        def identity() -> bytes:
            return caller.key_id.encode() or conversation()

        served = self.router.find(name, identity)
        if served is None and not self.router.models(identity):
            raise NoUpstreamError
        if served is None or not self._may_use(caller, served, identity):
            raise ModelNotFoundError(name)
        note_model(request, served)
        fallback = served.fallback
        if fallback is not None and not caller.may_use(name, fallback.card.name):
            return replace(served, fallback=None)
        return served

    def models_of(self, caller: Caller) -> list[tuple[str, ServedModel]]:
        """Return the models that a caller may use, by all names of each; every name stands for one model.

        Raises:
            NoUpstreamError: no server has said yet which models there are.
        """
        identity = caller.key_id.encode
        models = self.router.models(identity)
        if not models:
            raise NoUpstreamError
        return [
            (name, served)
            for _, served in sorted(models.items())
            if self._may_use(caller, served, identity)
            for name in self._names_of(served, identity)
        ]

    def _may_use(self, caller: Caller, served: ServedModel, identity: Callable[[], bytes]) -> bool:
        return caller.may_use(*self._names_of(served, identity))

    def _names_of(self, served: ServedModel, identity: Callable[[], bytes]) -> list[str]:
        """Return the names that stand for a model: its own, and those aliases that do not stand for another."""
        names = dict.fromkeys((served.card.name, *served.card.aliases))
        found = {name: self.router.find(name, identity) for name in names}
        return [name for name, model in found.items() if model is not None and model.card.name == served.card.name]


def note_model(request: HttpRequest, model: ServedModel) -> None:
    """Say in the record of a request which model is to answer it, and on which side."""
    request.record.model, request.record.side = model.card.name, model.side
