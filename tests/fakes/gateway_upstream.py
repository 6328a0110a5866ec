"""The servers behind a gateway, without any: a router whose exchanges say what a test has written.

Owns the form in which the ensemble puts a sequence of tokens into responses, whole or cut anywhere. Never opens a
socket.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from trident_ensemble.contract.errors import read_wire_message
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.errors import ApiError
from trident_gateway.upstream.events import GenerateEvent
from trident_gateway.upstream.refusals import api_error
from trident_gateway.upstream.served_model import GenerateCall, ServedModel

CARD = ModelCard(
    name="demo", created=1_700_000_000, max_seq_len=256, digest="d1", aliases=("gpt-demo",), takes_messages=True
)
MODEL = ServedModel(CARD, "ensemble", "preprocessing")


@dataclass(frozen=True)
class Token:
    """A token that a model has chosen: its id, bytes and scores, and whether the text has it."""

    token_id: int
    raw: bytes
    log_prob: float = -0.5
    top: tuple[tuple[bytes, float], ...] = ()
    is_text: bool = True

    @property
    def digits(self) -> str:
        """The bytes as the core sends them."""
        return self.raw.hex() if self.is_text else f"!{self.raw.hex()}"

    @property
    def said(self) -> bytes:
        """The bytes that are in the text."""
        return self.raw if self.is_text else b""


@dataclass(frozen=True)
class SpokenAnswer:
    """One answer of the model, and why it ended."""

    tokens: tuple[Token, ...]
    finish_reason: str = "eos"


def tokens_of(text: str, first_id: int = 100) -> tuple[Token, ...]:
    """Return a text as tokens of up to three bytes, so that borders fall into the middle of characters."""
    raw = text.encode()
    pieces = [raw[at : at + 3] for at in range(0, len(raw), 3)]
    scores = [-0.25 * (at % 7) - 0.125 for at in range(len(pieces))]
    return tuple(
        Token(first_id + at, piece, score, ((piece, score), (b"\xff", -2.5)))
        for at, (piece, score) in enumerate(zip(pieces, scores, strict=True))
    )


@dataclass
class Script:
    """What the model says to one prompt.

    Args:
        answers: one for each sequence.
        prompt: its tokens.
        num_cached: of these, found in the cache.
        order: which sequence speaks next, with how many tokens, in a stream; None for one token at a time in turn.
        events_per_read: how many responses come in one read.
        fails_after: responses after which the server fails; None for never.
        failure: raised then.
    """

    answers: Sequence[SpokenAnswer]
    prompt: Sequence[Token] = tokens_of("abcdefghi", 7)
    num_cached: int = 1
    order: Sequence[tuple[int, int]] | None = None
    events_per_read: int = 1
    fails_after: int | None = None
    failure: ApiError | None = None

    def events(self, call: GenerateCall) -> list[GenerateEvent]:
        """Return the responses to a call."""
        return self.streamed(call) if call.streaming else [self.whole(call)]

    def whole(self, call: GenerateCall) -> GenerateEvent:
        """Return the one response of a call that does not stream."""
        wants = json.loads(call.body)
        pieces = [_Piece(self, index, wants) for index in range(len(self.answers))]
        parts = [piece.take(len(answer.tokens)) for piece, answer in zip(pieces, self.answers, strict=True)]
        return _joined(parts, wants, {**self._prompt_values(wants), "num_cached_tokens": self.num_cached})

    def streamed(self, call: GenerateCall) -> list[GenerateEvent]:
        """Return the responses of a stream."""
        wants = json.loads(call.body)
        pieces = [_Piece(self, index, wants) for index in range(len(self.answers))]
        rounds = max((len(answer.tokens) for answer in self.answers), default=0)
        order = list(self.order or [(index, 1) for _ in range(rounds) for index in range(len(pieces))])
        order += [(index, len(answer.tokens)) for index, answer in enumerate(self.answers)]
        events: list[GenerateEvent] = []
        for index, count in order:
            if not pieces[index].is_over:
                first = self._prompt_values(wants) if not events else {}
                part = pieces[index].take(count)
                if part["finish_reason"]:
                    first["num_cached_tokens"] = self.num_cached
                events.append(_joined([part], wants, first))
        return events

    def _prompt_values(self, wants: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {"num_input_tokens": len(self.prompt)}
        if wants.get("return_prompt_log_probs"):
            top = wants.get("num_top_log_probs", 0)
            values["prompt_log_probs"] = [0.0, *(token.log_prob for token in self.prompt[1:])]
            values["prompt_token_bytes"] = [token.digits for token in self.prompt]
            if top:
                rest = self.prompt[1:]
                values["prompt_top_log_probs"] = [value for token in rest for _, value in token.top[:top]]
                values["prompt_top_token_bytes"] = [raw.hex() for token in rest for raw, _ in token.top[:top]]
        return values


class _Piece:
    """Where one sequence is."""

    def __init__(self, script: Script, index: int, wants: Mapping[str, Any]) -> None:
        self._answer = script.answers[index]
        self._index = index
        self._prompt = list(script.prompt) if wants.get("echo") else []
        self._markers = frozenset(wants.get("marker_ids", ()))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0
        self.is_over = False

    def take(self, count: int) -> dict[str, Any]:
        tokens = self._answer.tokens[self._at : self._at + max(1, count)]
        self._at += len(tokens)
        self.is_over = self._at >= len(self._answer.tokens)
        text, markers = "", []
        for token in self._prompt:
            text += self._decoder.decode(token.said)
        for token in tokens:
            if token.token_id in self._markers:
                text += self._decoder.decode(b"", True)
                markers.append((len(text), token.token_id))
            else:
                text += self._decoder.decode(token.said)
        if self.is_over:
            text += self._decoder.decode(b"", True)
        ids = [token.token_id for token in (*self._prompt, *tokens)]
        self._prompt = []
        return {
            "index": self._index,
            "text": text,
            "ids": ids,
            "markers": markers,
            "tokens": tokens,
            "finish_reason": self._answer.finish_reason if self.is_over else "",
            "num_output_tokens": self._at,
        }


def _joined(parts: Sequence[dict[str, Any]], wants: Mapping[str, Any], extra: Mapping[str, Any]) -> GenerateEvent:
    """Return the response of some sequences as Triton writes it, and as the gateway reads that."""
    raw: dict[str, Any] = {"model_name": "ensemble", "model_version": "1", **extra}
    longest = max(len(part["ids"]) for part in parts)
    raw["text_output"] = [part["text"] for part in parts]
    raw["output_ids"] = [token_id for part in parts for token_id in part["ids"] + [0] * (longest - len(part["ids"]))]
    if wants.get("num_return_sequences", 1) > 1:
        raw["sequence_index"] = [part["index"] for part in parts]
    if wants.get("marker_ids"):
        raw["markers"] = [
            number for row, part in enumerate(parts) for marker in part["markers"] for number in (row, *marker)
        ]
    if wants.get("return_log_probs"):
        most = max(len(part["tokens"]) for part in parts)
        top = wants.get("num_top_log_probs", 0)
        padded = [[*part["tokens"], *[None] * (most - len(part["tokens"]))] for part in parts]
        raw["output_log_probs"] = [token.log_prob if token else 0.0 for row in padded for token in row]
        raw["output_token_bytes"] = [token.digits if token else "" for row in padded for token in row]
        if top:
            tokens = [token for part in parts for token in part["tokens"]]
            raw["top_log_probs"] = [value for token in tokens for _, value in token.top[:top]]
            raw["top_token_bytes"] = [token_raw.hex() for token in tokens for token_raw, _ in token.top[:top]]
    if all(part["finish_reason"] for part in parts):
        raw["finish_reason"] = [part["finish_reason"] for part in parts]
        raw["num_output_tokens"] = [part["num_output_tokens"] for part in parts]
        raw["sequence_length"] = [len(part["ids"]) for part in parts]
    return msgspec.convert({key: _as_triton(value) for key, value in raw.items() if value != []}, GenerateEvent)


def _as_triton(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def refusal(message: str) -> ApiError:
    """Return what the upstream room makes of a message of the ensemble."""
    return api_error(read_wire_message(message))


class FakeExchange:
    """An exchange that reads from a script, and knows whether it was closed."""

    server = "http://fake:8000"

    def __init__(self, script: Script, call: GenerateCall) -> None:
        self._script = script
        self._events = script.events(call)
        self._num_read = 0
        self._spending = call.spending
        self._spending.note_sent()
        self.is_closed = False

    async def read(self) -> Sequence[GenerateEvent]:
        """Return the events of one read."""
        script = self._script
        if script.fails_after is not None and self._num_read >= script.fails_after:
            assert script.failure is not None
            raise script.failure
        events = self._events[self._num_read : self._num_read + script.events_per_read]
        self._num_read += len(events)
        return events

    async def close(self) -> None:
        """Note the end."""
        if not self.is_closed:
            self.is_closed = True
            self._spending.note_ended()


@dataclass
class FakeRouter:
    """A router without servers.

    Args:
        say: returns what the model says to a call; raises what the server refuses.
        served: the models.
        json_answers: what `call_json` returns, by the model's name.
    """

    say: Callable[[GenerateCall], Script]
    served: Sequence[ServedModel] = (MODEL,)
    json_answers: Callable[[str, bytes], bytes] = lambda _name, _body: b"{}"
    calls: list[GenerateCall] = field(default_factory=list)
    exchanges: list[FakeExchange] = field(default_factory=list)
    #: By what callers' sides would have been chosen.
    identities: list[bytes] = field(default_factory=list)

    def models(self, _identity: Callable[[], bytes] = bytes) -> Mapping[str, ServedModel]:
        """Return the models by their names."""
        return {served.card.name: served for served in self.served}

    def find(self, name: str, identity: Callable[[], bytes] = bytes) -> ServedModel | None:
        """Return the model of a name or an alias."""
        self.identities.append(identity())
        return next((one for one in self.served if name in (one.card.name, *one.card.aliases)), None)

    async def open(self, call: GenerateCall) -> FakeExchange:
        """Open an exchange."""
        self.calls.append(call)
        exchange = FakeExchange(self.say(call), call)
        self.exchanges.append(exchange)
        return exchange

    async def call_json(self, model: ServedModel, path_suffix: str, body: bytes) -> bytes:
        """Answer for a model that is no ensemble."""
        return self.json_answers(path_suffix, body)

    @property
    def asked(self) -> dict[str, Any]:
        """The tensors of the last call."""
        tensors: dict[str, Any] = json.loads(self.calls[-1].body)
        return tensors
