"""Every refusal and failure that a client of the gateway can read, in the form that OpenAI's clients understand.

    ApiError
    ├── InvalidRequestError      400, what the client sent is at fault; names the field
    │   └── TooLargeForLimitError  it could never pass the key's limit
    ├── AuthenticationError      401
    ├── ForeignOriginError       403, from a page that a browser shows
    ├── NotFoundError            404, no such path
    ├── ModelNotFoundError       404, the model is not there, or not for this key
    ├── MethodNotAllowedError    405
    ├── SlowRequestError         408, the request did not arrive in time
    ├── BodyTooLargeError        413
    ├── MediaTypeError           415
    ├── HeadersTooLargeError     431
    ├── RateLimitError           429, for now
    ├── QuotaError               429, until the quota begins anew
    ├── UnavailableError         503, try again later
    │   ├── OverloadedError      the queue is full
    │   ├── DrainingError        this gateway takes nothing new
    │   └── NoUpstreamError      no server can be reached
    ├── ShutdownError            503, the gateway has stopped in the middle of the answer
    ├── DeadlineError            504, the client's timeout has passed
    └── EngineFaultError         500, the server has failed
        └── UpstreamLostError    the connection to it was lost in the middle of the answer

Owns statuses, types and codes, and how an error is written as JSON. Never quotes anything on its own account: the code
that raises decides what the text says, which goes to the client that caused it and nowhere else.
"""

from __future__ import annotations

import math

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]

_INVALID_REQUEST = "invalid_request_error"
_NO_RETRY = (b"x-should-retry", b"false")


class ApiError(Exception):
    """An answer that is an error.

    Args:
        message: a sentence or two for the client.
        status: the HTTP status; not seen by a client whose stream has begun.
        type: the kind of error, one of OpenAI's.
        code: a stable word for programs; None where there is none.
        param: the path of the field at fault, such as `messages[0].role`; None where there is none.
        headers: what stands in the answer beside the body.
        limit: the limit that has refused the request, one of the names in the metrics; "" if none has.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,  # noqa: A002 (the field's name in OpenAI's API)
        code: str | None = None,
        param: str | None = None,
        headers: Headers = (),
        limit: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers
        self.limit = limit

    def body(self) -> bytes:
        """Return the JSON of the answer: `{"error": {"message", "type", "param", "code"}}`."""
        message = self.message.encode(errors="backslashreplace").decode()
        param = None if self.param is None else self.param.encode(errors="backslashreplace").decode()
        return msgspec.json.encode(
            {"error": {"message": message, "type": self.type, "param": param, "code": self.code}}
        )


class InvalidRequestError(ApiError):
    """A request that cannot be served as it is.

    Args:
        code: `invalid_json`, `invalid_type`, `unknown_parameter`, `invalid_value`, `context_length_exceeded` or
            `invalid_json_schema`.
    """

    def __init__(self, message: str, *, code: str | None = "invalid_value", param: str | None = None) -> None:
        super().__init__(message, status=400, type=_INVALID_REQUEST, code=code, param=param)


class TooLargeForLimitError(InvalidRequestError):
    """A request that is larger than the whole of a key's limit, so that waiting does not help."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message, code="request_too_large_for_limit")
        self.headers = (_NO_RETRY,)
        self.limit = limit


class AuthenticationError(ApiError):
    """The one answer for a key that is missing, unknown, revoked or expired: it does not say which."""

    def __init__(self) -> None:
        super().__init__(
            "Incorrect API key provided. Send a valid key in the header `Authorization: Bearer ...`.",
            status=401,
            type=_INVALID_REQUEST,
            code="invalid_api_key",
            headers=((b"www-authenticate", b"Bearer"),),
        )


class ForeignOriginError(ApiError):
    """A request that a page of somebody else has made a browser send."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=403, type=_INVALID_REQUEST, code="foreign_origin")


class NotFoundError(ApiError):
    """A path at which there is nothing."""

    def __init__(self, message: str = "There is nothing at this path.") -> None:
        super().__init__(message, status=404, type=_INVALID_REQUEST, code="not_found")


class ModelNotFoundError(ApiError):
    """The one answer for a model that is not there and for one that the key may not use: it does not say which."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model}` does not exist or you do not have access to it.",
            status=404,
            type=_INVALID_REQUEST,
            code="model_not_found",
            param="model",
        )


class MethodNotAllowedError(ApiError):
    """A path that is there, but not for this method.

    Args:
        allowed: the methods that it takes.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        methods = ", ".join(allowed)
        super().__init__(
            f"This path takes {methods} alone.",
            status=405,
            type=_INVALID_REQUEST,
            code="method_not_allowed",
            headers=((b"allow", methods.encode()),),
        )


class SlowRequestError(ApiError):
    """A request that had not arrived in the time it may take."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, status=408, type=_INVALID_REQUEST, code="request_timeout", headers=((b"connection", b"close"),)
        )


class BodyTooLargeError(ApiError):
    """A body above the limit.

    What is left of it is thrown away rather than the connection closed: a client that still sends would be told of the
    reset instead of this.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The body is larger than the {max_bytes} bytes that this server takes.",
            status=413,
            type=_INVALID_REQUEST,
            code="request_too_large",
        )


class MediaTypeError(ApiError):
    """A body that does not call itself JSON."""

    def __init__(self) -> None:
        super().__init__(
            "The body must be JSON: send the header `Content-Type: application/json`, and no content encoding.",
            status=415,
            type=_INVALID_REQUEST,
            code="unsupported_media_type",
        )


class HeadersTooLargeError(ApiError):
    """Headers above the limit."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The path and headers are larger than the {max_bytes} bytes that this server takes.",
            status=431,
            type=_INVALID_REQUEST,
            code="headers_too_large",
            headers=((b"connection", b"close"),),
        )


class RateLimitError(ApiError):
    """A request that comes too soon.

    Args:
        kind: `requests` or `tokens`.
        limit: the limit that has refused it, as the metrics name it.
        retry_after_s: seconds until it would pass.
    """

    def __init__(self, message: str, *, kind: str, limit: str, retry_after_s: float) -> None:
        super().__init__(
            message,
            status=429,
            type=kind,
            code="rate_limit_exceeded",
            headers=retry_headers(retry_after_s),
            limit=limit,
        )


class QuotaError(ApiError):
    """A quota of a day or a month that is used up."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(
            message,
            status=429,
            type="insufficient_quota",
            code="insufficient_quota",
            headers=(_NO_RETRY,),
            limit=limit,
        )


class UnavailableError(ApiError):
    """A request that may succeed later.

    Args:
        retry_after_s: seconds after which to try again.
        headers: further headers.
    """

    def __init__(self, message: str, *, code: str, retry_after_s: float = 1.0, headers: Headers = ()) -> None:
        super().__init__(
            message,
            status=503,
            type="service_unavailable_error",
            code=code,
            headers=(*retry_headers(retry_after_s), *headers),
        )


class OverloadedError(UnavailableError):
    """A server whose queue is full."""

    def __init__(self, message: str = "The server is overloaded. Try again later.", retry_after_s: float = 1.0) -> None:
        super().__init__(message, code="server_is_overloaded", retry_after_s=retry_after_s)


class DrainingError(UnavailableError):
    """A gateway or server that finishes what it has, and takes nothing new."""

    def __init__(self) -> None:
        super().__init__(
            "The server is shutting down and takes no new requests. Try again.",
            code="draining",
            headers=((b"x-should-retry", b"true"), (b"connection", b"close")),
        )


class NoUpstreamError(UnavailableError):
    """No server that could take the request."""

    def __init__(self, message: str = "No server is ready for this model. Try again later.") -> None:
        super().__init__(message, code="no_upstream")


class ShutdownError(ApiError):
    """The end of an answer for which a draining gateway had no more time."""

    def __init__(self) -> None:
        super().__init__(
            "The server has shut down before the answer was complete.",
            status=503,
            type="server_error",
            code="shutdown",
            headers=((b"connection", b"close"),),
        )


class DeadlineError(ApiError):
    """An answer that would come, or has come, after the client's timeout."""

    def __init__(self, message: str = "The request's timeout has passed.") -> None:
        super().__init__(message, status=504, type="timeout_error", code="timeout", headers=(_NO_RETRY,))


class EngineFaultError(ApiError):
    """A failure inside the server, of which the client learns only that it was one."""

    def __init__(
        self, message: str = "The server had an error while it processed the request.", *, code: str | None = None
    ) -> None:
        super().__init__(message, status=500, type="server_error", code=code)


class UpstreamLostError(EngineFaultError):
    """A server that was lost in the middle of an answer."""

    def __init__(self) -> None:
        super().__init__("The connection to the model server was lost before the answer was complete.")


def retry_headers(seconds: float) -> Headers:
    """Return the headers that ask a client to try again after a time, in whole seconds and in milliseconds."""
    # Rounded first: a whole number of milliseconds is one still after it was divided by 1000 and multiplied again.
    milliseconds = max(1, math.ceil(round(seconds * 1000, 6)))
    return (
        (b"retry-after", b"%d" % math.ceil(milliseconds / 1000)),
        (b"retry-after-ms", b"%d" % milliseconds),
    )


def error_event(error: ApiError) -> bytes:
    """Return the event with which a stream ends that has failed after its beginning."""
    return b"data: %b\n\n" % error.body()
