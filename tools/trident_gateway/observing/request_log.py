"""The record of one request.

Owns what may be known of a request after its end: ids, names, counts, times. Never holds anything that a client or a
model has written.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RequestRecord:
    """The facts about one request, filled in as it goes along, and written once at its end.

    Args:
        request_id: the one in the answer's `x-request-id`: the client's own if it is a valid one.
        route: the name of the endpoint, from a closed list.
        started_s: when the request's headers were there, in seconds since 1970.
        upstream_id: under which the server knows the request; random.
        key_id: of the key that was used, never the key.
        tenant: of the key.
        model: as the catalogue names it, never as the client did.
        status: of the answer; 499 if the client was gone before it began.
        is_error: the answer is an error, or has ended with one.
        error_code: a word from a closed list; "" without an error.
        is_stream: the answer is a stream of events.
        num_input_tokens: in the prompts.
        num_cached_tokens: of those, found in the prefix cache.
        num_output_tokens: of all answers to the request.
        ttft_s: seconds from the start to the first part of a stream; None where there was none.
        duration_s: seconds from the start to the end.
        finish_reason: of the first answer, as the client has read it.
        upstream: URL of the server that answered.
        client_gone: where the request was when its client left: `queued`, `plain`, `stream`; "" if it did not.
    """

    request_id: str = ""
    route: str = ""
    started_s: float = 0.0
    upstream_id: str = ""
    key_id: str = ""
    tenant: str = ""
    model: str = ""
    status: int = 0
    is_error: bool = False
    error_code: str = ""
    is_stream: bool = False
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    ttft_s: float | None = None
    duration_s: float = 0.0
    finish_reason: str = ""
    upstream: str = ""
    client_gone: str = ""
