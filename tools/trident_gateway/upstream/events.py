"""The server-sent events of Triton's `generate_stream`, cut from a stream of bytes and decoded.

Owns the events' form. Never reads a connection, and never holds more of an event than one may be long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

MAX_EVENT_BYTES = 64 << 20
_END = b"\n\n"
_FIELD = b"data: "

Value = TypeVar("Value")


class MalformedEventError(Exception):
    """A server has sent what is no event of Triton's."""


class GenerateEvent(msgspec.Struct, gc=False):
    """One response of the ensemble: its output tensors by their names, None where the response has none.

    Those that no answer to a client is made of are left out.

    Triton writes a tensor of one element as that element, and any other as a flat list, whatever its shape. `as_list`
    and `as_rows` bring both into one form.
    """

    text_output: str | list[str] | None = None
    output_ids: int | list[int] | None = None
    sequence_index: int | list[int] | None = None
    markers: list[int] | None = None
    output_log_probs: float | list[float] | None = None
    top_log_probs: float | list[float] | None = None
    top_log_prob_ids: int | list[int] | None = None
    output_token_bytes: str | list[str] | None = None
    top_token_bytes: str | list[str] | None = None
    finish_reason: str | list[str] | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | list[int] | None = None
    num_cached_tokens: int | None = None
    sequence_length: int | list[int] | None = None
    prompt_log_probs: float | list[float] | None = None
    prompt_top_log_probs: float | list[float] | None = None
    prompt_top_log_prob_ids: int | list[int] | None = None
    prompt_token_bytes: str | list[str] | None = None
    prompt_top_token_bytes: str | list[str] | None = None
    arrival_time_ns: int | None = None
    first_scheduled_time_ns: int | list[int] | None = None
    first_token_time_ns: int | list[int] | None = None
    last_token_time_ns: int | list[int] | None = None
    #: The text of a refusal or a failure, which comes alone.
    error: str | None = None


def as_list(value: Value | list[Value] | None) -> list[Value]:
    """Return the elements of a tensor; none where the response does not have it."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def as_rows(value: Value | list[Value] | None, num_rows: int) -> list[list[Value]]:
    """Return the rows of a tensor of two dimensions, of which one is known; empty rows where it is absent.

    Raises:
        MalformedEventError: its elements cannot be divided among so many rows.
    """
    elements = as_list(value)
    if num_rows < 1:
        return []
    length, rest = divmod(len(elements), num_rows)
    if rest:
        raise MalformedEventError(f"{len(elements)} elements in {num_rows} rows")
    return [elements[row * length : (row + 1) * length] for row in range(num_rows)]


_decode = msgspec.json.Decoder(GenerateEvent).decode


class EventCutter:
    """The events of one answer, whose bytes come in pieces of any size."""

    __slots__ = ("_rest", "_searched")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    @property
    def is_at_border(self) -> bool:
        """Whether the last event is complete."""
        return not self._rest

    def feed(self, data: bytes) -> Sequence[GenerateEvent]:
        """Return the events that are complete with these bytes.

        Raises:
            MalformedEventError: they are not what Triton sends.
        """
        if (
            not self._rest and len(data) > 2 and data.find(_END) == len(data) - 2
        ):  # by far the most frequent case: one whole event
            return (_event(data),)
        rest = self._rest
        rest += data
        events: list[GenerateEvent] = []
        begin, end = 0, rest.find(_END, self._searched)
        while end >= 0:
            events.append(_event(bytes(rest[begin : end + 2])))
            begin = end + 2
            end = rest.find(_END, begin)
        if begin:
            del rest[:begin]
        self._searched = max(0, len(rest) - 1)
        if len(rest) > MAX_EVENT_BYTES:
            raise MalformedEventError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events


def _event(block: bytes) -> GenerateEvent:
    if block[:6] != _FIELD:
        raise MalformedEventError("an event that does not begin with `data: `")
    try:
        return _decode(memoryview(block)[6:])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedEventError("an event that is not a response") from None
