"""Every error's status, type, code and headers, by the table that clients were promised."""

from __future__ import annotations

import json

import pytest

from trident_gateway import errors
from trident_gateway.errors import ApiError

INVALID = "invalid_request_error"
BUSY = "service_unavailable_error"
TABLE: list[tuple[ApiError, int, str, str | None, str | None, dict[str, str]]] = [
    (errors.AuthenticationError(), 401, INVALID, "invalid_api_key", None, {"www-authenticate": "Bearer"}),
    (errors.ModelNotFoundError("m"), 404, INVALID, "model_not_found", "model", {}),
    (errors.ForeignOriginError("s"), 403, INVALID, "foreign_origin", None, {}),
    (errors.NotFoundError(), 404, INVALID, "not_found", None, {}),
    (errors.MethodNotAllowedError(("GET", "POST")), 405, INVALID, "method_not_allowed", None, {"allow": "GET, POST"}),
    (errors.SlowRequestError("s"), 408, INVALID, "request_timeout", None, {"connection": "close"}),
    (errors.BodyTooLargeError(9), 413, INVALID, "request_too_large", None, {}),
    (errors.MediaTypeError(), 415, INVALID, "unsupported_media_type", None, {}),
    (errors.HeadersTooLargeError(9), 431, INVALID, "headers_too_large", None, {"connection": "close"}),
    (errors.InvalidRequestError("x", code="invalid_json"), 400, INVALID, "invalid_json", None, {}),
    (
        errors.InvalidRequestError("x", param="messages[0].role"), 400, INVALID, "invalid_value", "messages[0].role", {}
    ),
    (
        errors.TooLargeForLimitError("x", limit="input_tokens"), 400, INVALID, "request_too_large_for_limit", None,
        {"x-should-retry": "false"},
    ),
    (
        errors.RateLimitError("x", kind="tokens", limit="input_tokens", retry_after_s=2.3), 429, "tokens",
        "rate_limit_exceeded", None, {"retry-after": "3", "retry-after-ms": "2300"},
    ),
    (
        errors.QuotaError("x", limit="day"), 429, "insufficient_quota", "insufficient_quota", None,
        {"x-should-retry": "false"},
    ),
    (
        errors.OverloadedError(), 503, BUSY, "server_is_overloaded", None,
        {"retry-after": "1", "retry-after-ms": "1000"},
    ),
    (
        errors.DrainingError(), 503, BUSY, "draining", None,
        {"retry-after": "1", "retry-after-ms": "1000", "x-should-retry": "true", "connection": "close"},
    ),
    (
        errors.NoUpstreamError(), 503, BUSY, "no_upstream", None, {"retry-after": "1", "retry-after-ms": "1000"}
    ),
    (errors.ShutdownError(), 503, "server_error", "shutdown", None, {"connection": "close"}),
    (errors.DeadlineError(), 504, "timeout_error", "timeout", None, {"x-should-retry": "false"}),
    (errors.EngineFaultError(), 500, "server_error", None, None, {}),
    (errors.UpstreamLostError(), 500, "server_error", None, None, {}),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{type(row[0]).__name__}-{row[3]}")
def test_errors_are_what_the_table_says(
    row: tuple[ApiError, int, str, str | None, str | None, dict[str, str]],
) -> None:
    error, status, kind, code, param, headers = row
    content = json.loads(error.body())
    assert content == {"error": {"message": error.message, "type": kind, "param": param, "code": code}}
    assert error.status == status
    assert {name.decode(): value.decode() for name, value in error.headers} == headers


def test_errors_all_have_a_row() -> None:
    def classes(kind: type[ApiError]) -> set[type[ApiError]]:
        return {kind, *(one for below in kind.__subclasses__() for one in classes(below))}

    own = {kind for kind in classes(ApiError) if kind.__module__ == errors.__name__}
    assert own - {type(row[0]) for row in TABLE} == {ApiError, errors.UnavailableError}


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 0.5, 1.0, 1.0001, 59.9])
def test_errors_never_ask_a_client_to_come_back_too_soon(seconds: float) -> None:
    headers = dict(errors.retry_headers(seconds))
    assert seconds <= int(headers[b"retry-after-ms"]) / 1000 <= int(headers[b"retry-after"])
    assert int(headers[b"retry-after"]) < seconds + 1.001 or seconds == 0


def test_errors_with_half_a_surrogate_pair_are_still_json() -> None:
    error = errors.InvalidRequestError("bad \ud800", param="a\udfff")
    assert json.loads(error.body())["error"]["message"] == r"bad \ud800"
    event = errors.error_event(error)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
