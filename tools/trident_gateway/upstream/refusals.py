"""What a server's refusals and failures mean for a client.

Owns the way from a message of the ensemble, or of Triton itself, to an error of the gateway. Never shows a client a
text that was not made for clients.
"""

from __future__ import annotations

import re

import msgspec

from trident_ensemble.contract.errors import WireError, read_wire_message
from trident_gateway.errors import (
    ApiError,
    DeadlineError,
    DrainingError,
    EngineFaultError,
    InvalidRequestError,
    OverloadedError,
)

_CODES = {"context_length": "context_length_exceeded", "invalid_guide": "invalid_json_schema"}
#: Triton's own words about a model that is not there, or is not ready yet.
_NOT_THERE = re.compile(r"unknown model|is not ready|no available versions", re.IGNORECASE)

#: Triton's own words about a model's process that does not answer it, as one that was stopped.
_NOT_HEALTHY = re.compile(r"Stub process '[^']*' is not healthy")


class RefusedError(Exception):
    """An answer that is an error, before anything of a text has come.

    Args:
        status: of the HTTP answer.
        message: what the server says.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.wire = read_wire_message(message)
        #: Another server may take the request.
        is_unavailable = self.wire.code == "UNAVAILABLE" and self.wire.reason not in {"timeout", "too_late"}
        self.is_elsewhere_welcome = is_unavailable or bool(_NOT_HEALTHY.search(message))
        #: The server does not have the model at present.
        self.is_model_missing = bool(status in {400, 404} and _NOT_THERE.search(message))


class UpstreamRefusalError(InvalidRequestError):
    """A request that the ensemble has refused for a fault of its own.

    Args:
        wire: what the ensemble says; its field is the name of a tensor, which is also `param` unless the API, which
            knows from what the tensor was made, says otherwise.
    """

    def __init__(self, wire: WireError) -> None:
        text = f"{wire.field}: {wire.text}" if wire.field else wire.text
        super().__init__(text, code=_CODES.get(wire.reason, "invalid_value"), param=wire.field or None)
        self.wire = wire


def api_error(wire: WireError) -> ApiError:
    """Return what a client learns of an error of the ensemble."""
    if wire.code == "INVALID_ARG":
        return UpstreamRefusalError(wire)
    if wire.code == "UNAVAILABLE":
        if wire.reason in {"timeout", "too_late"}:
            return DeadlineError()
        return DrainingError() if wire.reason == "draining" else OverloadedError()
    return EngineFaultError()


def read_refusal(body: bytes) -> str:
    """Return the message in the body of a refusal, which is JSON, an event, or a text; "" where there is none."""
    data = body.removeprefix(b"data: ").strip()
    try:
        return msgspec.json.decode(data, type=_Refusal).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


class _Refusal(msgspec.Struct):
    error: str = ""
