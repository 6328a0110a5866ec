"""A model that does what clients ask of it, for a tritonserver that is none.

Owns what it says: a sentence, an instance of the schema that it was given, or a call of the first tool that it may
call. Never looks at how a client asked: it sees the tensors that the gateway made of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tests.fakes.gateway_upstream import Script as SpokenScript
from tests.fakes.gateway_upstream import SpokenAnswer, Token, tokens_of
from tests.fakes.triton_http import Event, Script, refusal
from trident_ensemble.contract.model_card import Marker, ModelCard, ToolFormat
from trident_gateway.tool_calls.formats import BLANKS
from trident_gateway.upstream.served_model import GenerateCall, ServedModel

CARD = ModelCard(
    name="demo",
    created=1_700_000_000,
    max_seq_len=1024,
    digest="d1",
    aliases=("gpt-demo",),
    takes_messages=True,
    takes_tools=True,
    tool_format=ToolFormat.HERMES,
    tool_markers={"start": Marker("<tool_call>", 50), "end": Marker("</tool_call>", 51)},
)
#: With characters that are cut by the borders of tokens.
SENTENCE = "The naïve ferry 🚢 leaves at seven, and σύντομα returns."
_MODEL = ServedModel(CARD, "ensemble", "preprocessing")


def speak(request: dict[str, Any]) -> Script:
    """Answer one request, as the core would."""
    prompt = request.get("text_input") or request.get("messages") or ""
    prompt_tokens = tokens_of(prompt, 1000) if prompt else tokens_of("abc" * len(request["prompt_token_ids"]), 1000)
    limit = request.get("max_tokens", 256)
    if len(prompt_tokens) + limit > CARD.max_seq_len:
        return refusal(
            f"[INVALID_ARG] context_length: max_tokens: {limit} after a prompt of {len(prompt_tokens)} tokens are more "
            f"than the {CARD.max_seq_len} that fit"
        )
    answers = [_answer(request, prompt, limit)] * request.get("num_return_sequences", 1)
    call = GenerateCall(_MODEL, json.dumps(request).encode(), "", "", bool(request.get("stream")), b"", None)
    events = SpokenScript(answers, prompt_tokens).events(call)
    return Script([_as_json(msgspec.to_builtins(event)) for event in events], gap_s=request.get("ignore_eos", 0) * 0.01)


def _as_json(event: dict[str, Any]) -> Event:
    return {name: value for name, value in event.items() if value is not None}


def _answer(request: dict[str, Any], prompt: str, limit: int) -> SpokenAnswer:
    text, reason = _text(request, prompt), "eos"
    if request.get("ignore_eos"):
        text = (text + " ") * 20
    for word in request.get("stop_words", []):
        if word in text:
            text, reason = text[: text.index(word)], "stop"
    tokens = tuple(_marked(text))
    if limit < len(tokens):
        tokens, reason = tokens[:limit], "length"
    return SpokenAnswer(tokens, reason)


def _marked(text: str) -> Iterator[Token]:
    """Yield the tokens of a text, in which a marker is one."""
    markers = {marker.text: marker.token_id for marker in CARD.tool_markers.values() if marker.token_id is not None}
    found = [(text.find(word), word) for word in markers if word in text]
    if not found:
        yield from tokens_of(text)
        return
    at, word = min(found)
    yield from tokens_of(text[:at])
    yield Token(markers[word], word.encode())
    yield from _marked(text[at + len(word) :])


def _text(request: dict[str, Any], prompt: str) -> str:
    kind, guide = request.get("guided_decoding_guide_type"), request.get("guided_decoding_guide", "")
    if kind == "structural_tag":
        return _spelled(json.loads(guide)["format"], calls="weather" in prompt)
    if kind in ("json", "json_schema"):
        return json.dumps(instance(json.loads(guide)) if guide else {"answer": 42}, ensure_ascii=False)
    return SENTENCE


def _spelled(form: dict[str, Any], *, calls: bool) -> str:
    """Return a text that follows a format of structural tags."""

    def triggered(form: dict[str, Any]) -> str:
        text = "" if form.get("at_least_one") else "Let me see. "
        return text + (_spelled(form["tags"][0], calls=calls) if calls or form.get("at_least_one") else SENTENCE)

    spell: dict[str, Callable[[dict[str, Any]], str]] = {
        "any_text": lambda _form: "Let me see. ",
        "const_string": lambda form: str(form["value"]),
        "json_schema": lambda form: json.dumps(instance(form["json_schema"]), ensure_ascii=False),
        "sequence": lambda form: "".join(_spelled(part, calls=calls) for part in form["elements"]),
        "or": lambda form: _spelled(form["elements"][0 if calls else -1], calls=calls),
        "optional": lambda form: _spelled(form["content"], calls=calls) if calls else "",
        "tag": lambda form: form["begin"] + _spelled(form["content"], calls=calls) + form["end"],
        "triggered_tags": triggered,
        "tags_with_separator": triggered,
        "regex": lambda form: _shortest(form["pattern"]),
    }
    return spell[form["type"]](form)


def _shortest(pattern: str) -> str:
    """Return the shortest text that an expression matches, of which only the blanks are optional."""
    return pattern.replace(BLANKS, "").replace("\\", "")


def instance(schema: dict[str, Any]) -> Any:
    """Return a value that a schema of the tests allows."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return instance(schema["anyOf"][0])
    kinds: dict[str, Callable[[], Any]] = {
        "object": lambda: {name: instance(part) for name, part in schema.get("properties", {}).items()} or {},
        "array": lambda: [instance(schema.get("items", {"type": "string"}))] * schema.get("minItems", 1),
        "string": lambda: "Ada ∀",
        "integer": lambda: int(schema.get("minimum", 36)),
        "number": lambda: 1.5,
        "boolean": lambda: True,
        "null": lambda: None,
    }
    return kinds[schema.get("type", "object")]()
