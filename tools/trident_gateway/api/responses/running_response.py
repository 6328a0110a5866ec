"""One response of the Responses API while it runs.

Owns its JSON, and the numbers of its events. Never waits for anything.
"""

from __future__ import annotations

import time

import msgspec

from trident_gateway.api.chat import new_id
from trident_gateway.api.responses.output_items import Json, OutputItems
from trident_gateway.api.responses.request import FunctionTool, ResponsesRequest
from trident_gateway.api.usage import Usage
from trident_gateway.errors import ApiError


class RunningResponse:
    """One response: its items, and what the client has said about it.

    Args:
        fields: the request.
        model: the model's name.
    """

    def __init__(self, fields: ResponsesRequest, model: str) -> None:
        self.items = OutputItems()
        self._fields = fields
        self.model = model
        self._id = new_id("resp_")
        self._created = int(time.time())
        self._sequence_number = -1
        self._text = msgspec.Raw(msgspec.json.encode(_text_shown(fields)))
        self._tools = msgspec.Raw(msgspec.json.encode([_shown(tool) for tool in fields.tools or ()]))

    def begin(self) -> bytes:
        """Return the first events."""
        body = self.body("in_progress", None)
        return self.render([{"type": f"response.{kind}", "response": body} for kind in ("created", "in_progress")])

    def end(self, reason: str, usage: Usage) -> bytes:
        """Return the last event."""
        status = status_of(reason)
        return self.render([{"type": f"response.{status}", "response": self.body(status, usage)}])

    def fail(self, error: ApiError) -> bytes:
        """Return the last event of a response that has failed."""
        failure = {"code": "server_error", "message": error.message}
        events = b"" if self._sequence_number >= 0 else self.begin()
        body = {**self.body("failed", None), "error": failure}
        return events + self.render([{"type": "response.failed", "response": body}])

    def render(self, events: list[Json]) -> bytes:
        """Return events as they are sent, each with its number."""
        blocks = []
        for event in events:
            self._sequence_number += 1
            data = msgspec.json.encode({**event, "sequence_number": self._sequence_number})
            blocks.append(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data))
        return b"".join(blocks)

    def body(self, status: str, usage: Usage | None) -> Json:
        """Return the response as it is now."""
        fields = self._fields
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": fields.metadata or {},
            "model": self.model,
            "output": self.items.items if status != "in_progress" else [],
            "parallel_tool_calls": fields.parallel_tool_calls is not False,
            "previous_response_id": None,
            "temperature": fields.temperature,
            "text": self._text,
            "tool_choice": "auto" if fields.tool_choice is None else fields.tool_choice,
            "tools": self._tools,
            "top_logprobs": fields.top_logprobs,
            "top_p": fields.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }


def _text_shown(fields: ResponsesRequest) -> Json:
    wanted = fields.text.format if fields.text else None
    raw: Json = {"type": "text"} if wanted is None else msgspec.to_builtins(wanted)
    return {"format": {key: value for key, value in raw.items() if value is not None}}


def _shown(tool: FunctionTool) -> Json:
    return {
        "type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
        "strict": True if tool.strict is None else tool.strict,
    }  # fmt: skip


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.num_input,
        "input_tokens_details": {"cached_tokens": usage.num_cached, "cache_write_tokens": 0},
        "output_tokens": usage.num_output,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning or 0},
        "total_tokens": usage.num_input + usage.num_output,
    }


def status_of(reason: str) -> str:
    """Return the status of a response whose answer has ended for a reason of OpenAI's."""
    return "incomplete" if reason == "length" else "completed"
