"""What a client reads of an error, written by one side and read by the other, wherever Triton has put it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_ensemble.contract.errors import (
    REASONS,
    CancelledError,
    ContextLengthError,
    DeadlineError,
    DrainingError,
    EngineError,
    InvalidGuideError,
    QueueFullError,
    RequestError,
    TooLateError,
    TridentError,
    UnavailableError,
    WireError,
    read_wire_message,
    triton_code,
    wire_message,
)

WRITTEN = [
    (RequestError("top_p", "must be from 0 to 1, not 2"), "INVALID_ARG", "", "top_p"),
    (RequestError("messages[3].content", "must be a text"), "INVALID_ARG", "", "messages[3].content"),
    (ContextLengthError("max_tokens", "300 after 9 tokens: no"), "INVALID_ARG", "context_length", "max_tokens"),
    (InvalidGuideError("guide", "is [INTERNAL] a: b"), "INVALID_ARG", "invalid_guide", "guide"),
    (RequestError("context_length", "unknown field; known are max_tokens"), "INVALID_ARG", "", "context_length"),
    (RequestError("queue_full", "draining: x"), "INVALID_ARG", "", "queue_full"),
    (QueueFullError("the queue is full: 4 requests run"), "UNAVAILABLE", "queue_full", ""),
    (DeadlineError("timeout_ms: 5 ms have passed, waiting"), "UNAVAILABLE", "timeout", "timeout_ms"),
    (TooLateError("timeout_ms: 5 ms cannot be met: this prompt"), "UNAVAILABLE", "too_late", "timeout_ms"),
    (DrainingError("the server is shutting down"), "UNAVAILABLE", "draining", ""),
    (UnavailableError("there is no memory for it now"), "UNAVAILABLE", "", ""),
    (CancelledError("the request was cancelled"), "CANCELLED", "", ""),
    (EngineError("no token can be chosen: the logits are not finite numbers"), "INTERNAL", "", ""),
    (ValueError("anything:\nat all"), "INTERNAL", "", ""),
]  # fmt: skip
#: What Triton and its clients put before a model's message.
PREFIXES = ["", "in ensemble 'ensemble', ", "in ensemble 'a: [b] c', ", "[StatusCode.INTERNAL] in ensemble 'x', "]


def _all_kinds(kind: type[TridentError] = TridentError) -> list[type[TridentError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _all_kinds(below))]


def test_errors_reasons_are_a_closed_list() -> None:
    reasons = {kind.reason: triton_code(kind.__new__(kind)) for kind in _all_kinds() if kind.reason}
    assert reasons == REASONS


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("error", "code", "reason", "field"), WRITTEN)
def test_errors_are_read_as_they_were_written(
    error: Exception, code: str, reason: str, field: str, prefix: str
) -> None:
    read = read_wire_message(prefix + wire_message(error))
    assert (read.code, read.reason, read.field) == (code, reason, field)
    assert read.text == str(error).removeprefix(f"{field}: " if field else "")


@pytest.mark.parametrize(
    "message", ["", "Request for unknown model: 'x' is not found", "[UNKNOWN] a: b", "[INTERNAL]x"]
)
def test_errors_of_triton_itself_have_no_reason(message: str) -> None:
    assert read_wire_message(message) == WireError("INTERNAL", "", "", message)


@given(st.sampled_from(PREFIXES), st.text(max_size=40), st.sampled_from([RequestError, ContextLengthError]))
def test_errors_any_text_comes_through(prefix: str, text: str, kind: type[RequestError]) -> None:
    sent = wire_message(kind("text_input", text))
    read = read_wire_message(prefix + sent)
    assert (read.code, read.reason, read.field) == ("INVALID_ARG", kind.reason, "text_input")
    assert sent.endswith(read.text)
