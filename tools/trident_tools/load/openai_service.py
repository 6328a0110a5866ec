"""Requests to an OpenAI-compatible server: completions, or chat completions for prompts that are messages.

Owns the JSON of a request and the reading of its events. Import it in a process that runs greenlets. Never measures.
"""

from __future__ import annotations

import json
import time
from typing import Any

from trident_ensemble.contract.errors import ServerError
from trident_tools.load.client_records import ClientStream
from trident_tools.load.event_stream import EventStreams, error_message, get
from trident_tools.load.prompts import Prompt
from trident_tools.load.target import FailedRequestError, Target

_DONE = b"[DONE]"


def open_service(target: Target) -> OpenAIService:
    """Open the server at a URL that ends in `/v1`.

    Raises:
        ServerError: the server does not answer, or serves no model.
    """
    listing = get(target.url, "/models")
    try:
        models = [entry["id"] for entry in json.loads(listing)["data"]]
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{target.url}/models is not a list of models: does --url end in /v1?") from None
    if not models:
        raise ServerError(f"{target.url} serves no model")
    if target.model is not None and target.model not in models:
        raise ServerError(f"{target.url} does not serve {target.model!r}; it has {', '.join(models)}")
    return OpenAIService(target, target.model or models[0])


class OpenAIService:
    """A model of an OpenAI-compatible server.

    Args:
        target: the server, and what every request carries.
        model: the model that is asked.
    """

    def __init__(self, target: Target, model: str) -> None:
        self._url = target.url
        self._model = model
        self._fixed: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        if target.ignore_eos:
            self._fixed["ignore_eos"] = True
        self._fixed.update(target.fields)

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self._model

    def client(self) -> OpenAIClient:
        """Return a connection for one user."""
        return OpenAIClient(self._url, self)

    def close(self) -> None:
        """Do nothing, because clients share nothing."""

    def request(self, prompt: Prompt) -> tuple[str, dict[str, Any]]:
        """Return the path and the JSON of a request."""
        body = {**self._fixed, "max_tokens": prompt.max_tokens}
        if prompt.messages is not None:
            return "/chat/completions", {**body, "messages": list(prompt.messages)}
        return "/completions", {**body, "prompt": prompt.text}


class OpenAIClient:
    """One user's connection to an OpenAI-compatible server.

    Args:
        url: the URL of the server.
        service: makes the requests.
    """

    def __init__(self, url: str, service: OpenAIService) -> None:
        self._service = service
        self._streams = EventStreams(url)

    def ask(self, prompt: Prompt, stream: ClientStream) -> None:
        """Send a prompt, and note its responses until the last one.

        Raises:
            FailedRequestError: the request was not answered in full.
        """
        done = False
        for data in self._streams.post(*self._service.request(prompt)):
            now = time.perf_counter()
            if data == _DONE:
                done = True
                continue
            event = json.loads(data)
            if (message := error_message(event)) is not None:
                raise FailedRequestError(message)
            _note(stream, now, event)
        if not done:
            raise FailedRequestError("the stream ended without [DONE]")

    def close(self) -> None:
        """Close the connection; a request under way is cancelled."""
        self._streams.close()


def _note(stream: ClientStream, now: float, event: dict[str, Any]) -> None:
    """Note an event; chunks do not say how many tokens they have, but the usage after the last one does."""
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(key) for key in ("content", "reasoning_content", "reasoning")):
            stream.received(now, None)
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
    if usage := event.get("usage"):
        stream.num_input_tokens = usage.get("prompt_tokens")
        stream.num_output_tokens = usage.get("completion_tokens")
