"""Requests to Triton's generate_stream, over HTTP.

Owns the JSON of a request and the reading of its events. Import it in a process that runs greenlets. Never measures.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

from trident_ensemble.contract import layout, tensors
from trident_tools.load.client_records import ClientStream
from trident_tools.load.event_stream import EventStreams, error_message, get
from trident_tools.load.prompts import Prompt
from trident_tools.load.target import FailedRequestError, Target


def open_service(target: Target) -> GenerateStreamService:
    """Open the server at a URL.

    Raises:
        ServerError: the server does not answer, or does not serve the model.
    """
    service = GenerateStreamService(target)
    get(target.url, f"/v2/models/{quote(service.model)}/ready")
    return service


class GenerateStreamService:
    """A model of a Triton server, asked over HTTP.

    Args:
        target: the server, and what every request carries.
    """

    def __init__(self, target: Target) -> None:
        self._url = target.url
        self._model = target.model or layout.ENSEMBLE
        self._fixed: dict[str, Any] = {tensors.STREAM.name: True, **target.fields}
        if target.ignore_eos:
            self._fixed[tensors.IGNORE_EOS.name] = True

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self._model

    def client(self) -> GenerateStreamClient:
        """Return a connection for one user."""
        return GenerateStreamClient(self._url, self)

    def close(self) -> None:
        """Do nothing, because clients share nothing."""

    @property
    def path(self) -> str:
        """The path of requests."""
        return f"/v2/models/{quote(self._model)}/generate_stream"

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the JSON of a request; chat messages travel as a string."""
        if prompt.text is not None:
            text = {tensors.TEXT_INPUT.name: prompt.text}
        else:
            text = {tensors.MESSAGES.name: json.dumps(prompt.messages)}
        return {**text, tensors.MAX_TOKENS.name: prompt.max_tokens, **self._fixed}


class GenerateStreamClient:
    """One user's connection to a Triton server.

    Args:
        url: the URL of the server.
        service: makes the requests.
    """

    def __init__(self, url: str, service: GenerateStreamService) -> None:
        self._service = service
        self._streams = EventStreams(url)

    def ask(self, prompt: Prompt, stream: ClientStream) -> None:
        """Send a prompt, and note its responses until the last one.

        Raises:
            FailedRequestError: the request was not answered in full.
        """
        for data in self._streams.post(self._service.path, self._service.body(prompt)):
            now = time.perf_counter()
            event = json.loads(data)
            if (message := error_message(event)) is not None:
                raise FailedRequestError(message)
            _note(stream, now, event)

    def close(self) -> None:
        """Close the connection; a request under way is cancelled."""
        self._streams.close()


def _note(stream: ClientStream, now: float, event: dict[str, Any]) -> None:
    """Note an event, in which Triton writes a tensor of one element as that element, and an empty one as a list."""
    output_ids = event.get(tensors.OUTPUT_IDS.name)
    if output_ids is None:
        stream.received(now, None)
    elif output_ids != []:
        stream.received(now, len(output_ids) if isinstance(output_ids, list) else 1)
    if tensors.FINISH_REASON.name in event:
        stream.finish_reason = event[tensors.FINISH_REASON.name]
        stream.num_input_tokens = event[tensors.NUM_INPUT_TOKENS.name]
        stream.num_output_tokens = event[tensors.NUM_OUTPUT_TOKENS.name]
