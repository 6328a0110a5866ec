"""Judges recorded answers by the official client's own types; run by an interpreter that has them.

Reads exchanges from standard input, the JSON list that `relay.py` makes, and writes the problems of each. A problem is
a required field that is missing, a field that the type does not have, or a value that it does not allow. Owns the
choice of a type for an answer. Never mends an answer: the client itself takes much that the API would never send.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

import openai  # type: ignore[import-not-found]
from openai.types import Completion, Model  # type: ignore[import-not-found]
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # type: ignore[import-not-found]
from openai.types.responses import Response, ResponseStreamEvent  # type: ignore[import-not-found]
from pydantic import BaseModel

#: Fields that Trident's answers have beyond OpenAI's, by type: everybody else who serves models that reason has theirs
#: too, and a model says by what versions of it are compared.
OWN_FIELDS = {
    "ChatCompletionMessage": {"reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "Model": {"x_trident"},
}


#: Where OpenAI's own answers have a null that the client's types do not know: a choice that goes on, and the first
#: token of a prompt, which nothing precedes.
KNOWN_NULLS = {
    ("CompletionChoice", "finish_reason"),
    ("Logprobs", "token_logprobs"),
    ("Logprobs", "top_logprobs"),
}


class ErrorDetail(BaseModel):
    """What stands in an error, all of it always."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer that is an error, and an event that ends a stream."""

    error: ErrorDetail


class ModelPage(BaseModel):
    """The list of models, which the client reads piece by piece."""

    object: Literal["list"]
    data: list[Model]


ANSWERS: dict[tuple[str, str], tuple[Any, Any]] = {
    ("POST", "/v1/chat/completions"): (ChatCompletion, ChatCompletionChunk),
    ("POST", "/v1/completions"): (Completion, Completion),
    ("POST", "/v1/responses"): (Response, ResponseStreamEvent),
    ("GET", "/v1/models"): (ModelPage, None),
}


def problems(value: object, kind: Any, where: str = "") -> Iterator[str]:
    """Yield what is wrong with a value by a type."""
    if hasattr(kind, "__value__"):  # a named alias
        kind = kind.__value__
    origin = typing.get_origin(kind)
    if origin is Annotated:
        yield from problems(value, typing.get_args(kind)[0], where)
    elif origin in (Union, types.UnionType):
        yield from _of_union(value, typing.get_args(kind), where)
    elif origin is Literal:
        if value not in typing.get_args(kind):
            yield f"{where}: {value!r} is none of {typing.get_args(kind)}"
    elif origin is list:
        yield from _of_list(value, typing.get_args(kind)[0], where)
    elif origin is dict:
        yield from _of_dict(value, typing.get_args(kind)[1], where)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _of_model(value, kind, where)
    else:
        yield from _of_plain(value, kind, where)


def _of_union(value: object, kinds: tuple[Any, ...], where: str) -> Iterator[str]:
    """Yield the problems by the member that fits best; one whose `type` is the value's own comes first."""
    found = [
        (kind is type(None), not _has_same_type(value, kind), list(problems(value, kind, where))) for kind in kinds
    ]
    if all(listed for *_, listed in found):
        yield from min(found, key=lambda entry: (*entry[:2], len(entry[2])))[2]


def _has_same_type(value: object, kind: Any) -> bool:
    if not (isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    field = kind.model_fields.get("type")
    return field is not None and value.get("type") in typing.get_args(field.annotation)


def _of_list(value: object, kind: Any, where: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{where}: {type(value).__name__} is no list"
        return
    for index, item in enumerate(value):
        yield from problems(item, kind, f"{where}[{index}]")


def _of_dict(value: object, kind: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {type(value).__name__} is no object"
        return
    for key, item in value.items():
        yield from problems(item, kind, f"{where}.{key}")


def _of_model(value: object, kind: type[BaseModel], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {type(value).__name__} is no {kind.__name__}"
        return
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        if name in value:
            known = value[name]
            if (kind.__name__, name) in KNOWN_NULLS:
                known = [item for item in known if item is not None] if isinstance(known, list) else known
                if known is None:
                    continue
            yield from problems(known, field.annotation, f"{where}.{name}")
        elif field.is_required():
            yield f"{where}.{name}: is missing in {kind.__name__}"
    for name in value.keys() - fields.keys() - OWN_FIELDS.get(kind.__name__, set()):
        yield f"{where}.{name}: is no field of {kind.__name__}"


def _of_plain(value: object, kind: Any, where: str) -> Iterator[str]:
    fits = {
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        type(None): value is None,
        None: value is None,
    }
    if kind not in (Any, object) and not fits[kind]:
        yield f"{where}: {type(value).__name__} is no {getattr(kind, '__name__', kind)}"


def judge(exchange: dict[str, Any]) -> list[str]:
    """Return the problems of one exchange."""
    try:
        return _judge(exchange)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"{exchange['method']} {exchange['path']}: cannot be read at all: {error!r}"]


def _judge(exchange: dict[str, Any]) -> list[str]:
    status, content_type, body = exchange["status"], exchange["content_type"], exchange["body"]
    if exchange["method"] == "HEAD":  # aiperf looks for a metrics page
        return []
    if status >= 400:
        return [*_is_json(content_type), *problems(json.loads(body), ErrorBody)]
    path = exchange["path"].split("?")[0]
    if path.startswith("/v1/models/"):
        plain, streamed = Model, None
    else:
        plain, streamed = ANSWERS[exchange["method"], path]
    if not content_type.startswith("text/event-stream"):
        return [*_is_json(content_type), *problems(json.loads(body), plain)]
    if streamed is None:
        return [f"{path} does not stream"]
    events = list(_events(body))
    found = [problem for name, data in events if data != "[DONE]" for problem in _of_event(name, data, streamed)]
    if streamed is not ResponseStreamEvent:
        found += _of_chunks([json.loads(data) for _, data in events if data != "[DONE]"], exchange)
    return found + _of_order(events, streamed, exchange)


def _is_json(content_type: str) -> list[str]:
    return [] if content_type == "application/json" else [f"content-type: {content_type!r}"]


def _events(body: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the data of each event; comments are none."""
    for block in body.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            yield (
                "".join(text for field, _, text in lines if field == "event"),
                "\n".join(text for field, _, text in lines if field == "data"),
            )


def _of_event(name: str, data: str, kind: Any) -> Iterator[str]:
    value = json.loads(data)
    if "error" in value and "id" not in value and "type" not in value:
        yield from problems(value, ErrorBody)
    else:
        yield from problems(value, kind)
    if kind is ResponseStreamEvent and name != value.get("type"):
        yield f"event: {name!r} is not the type {value.get('type')!r}"


def _of_chunks(chunks: list[dict[str, Any]], exchange: dict[str, Any]) -> list[str]:
    """Return what is wrong with the chunks together."""
    chunks = [chunk for chunk in chunks if "error" not in chunk]
    found = [f"{name} changes within the stream" for name in ("id", "created", "model", "object") if
             len({json.dumps(chunk.get(name)) for chunk in chunks}) > 1]  # fmt: skip
    options = exchange["request"].get("stream_options") or {}
    if options.get("include_usage"):
        found += [".usage: a chunk has no usage" for chunk in chunks if "usage" not in chunk]
        if exchange["is_complete"] and [bool(chunk["choices"]) for chunk in chunks[-1:]] != [False]:
            found.append("the last chunk is not that of the usage")
    elif any("usage" in chunk or not chunk["choices"] for chunk in chunks):
        found.append(".usage: was not asked for")
    return found


def _of_order(events: list[tuple[str, str]], kind: Any, exchange: dict[str, Any]) -> list[str]:
    """Return what is wrong with the order of the events and with the stream's end."""
    if not exchange["is_complete"]:  # the client has gone
        return []
    if kind is ResponseStreamEvent:
        numbers = [json.loads(data)["sequence_number"] for _, data in events]
        ends = [name in ("response.completed", "response.incomplete", "response.failed") for name, _ in events]
        return [
            *([] if numbers == list(range(numbers[0], numbers[0] + len(numbers))) else ["sequence_number: has gaps"]),
            *([] if ends.index(True) == len(ends) - 1 else ["the stream does not end with the response"]),
        ]
    ends = [data == "[DONE]" or "error" in json.loads(data) for _, data in events]
    return [] if ends[-1:] == [True] and sum(ends) == 1 else ["the stream does not end with [DONE] or an error, once"]


def main() -> None:
    """Judge what comes on standard input."""
    exchanges = json.load(sys.stdin)
    json.dump({"version": openai.__version__, "problems": [judge(exchange) for exchange in exchanges]}, sys.stdout)


if __name__ == "__main__":
    main()
