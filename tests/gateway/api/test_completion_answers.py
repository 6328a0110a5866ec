"""What `/v1/completions` is answered, and what it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.gateway_upstream import Script, SpokenAnswer, Token, refusal, tokens_of
from tests.gateway.api.client import Answer, ApiClient
from tests.tokenizer_zoo import HIDDEN, tokenizer_of
from trident_backend.requests.output_options import OutputOptions
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.token_spelling import TokenSpelling
from trident_ensemble.text.token_bytes import TokenBytes
from trident_gateway.api.rows import prompt_scores
from trident_gateway.api.scores import CompletionScores
from trident_gateway.upstream.events import GenerateEvent

PATH = "/v1/completions"
HELLO = Script([SpokenAnswer(tokens_of("Hello wörld"))])


def post(script: Script = HELLO, **fields: Any) -> tuple[Answer, ApiClient]:
    """Send a completion."""
    client = ApiClient(script)
    answer = client.post(PATH, {"model": "demo", "prompt": "hi", **fields})
    assert answer.status == 200, answer.body
    return answer, client


def joined(events: list[Any], num_choices: int) -> list[dict[str, Any]]:
    """Return the choices that a client joins from chunks."""
    choices: list[dict[str, Any]] = [{"text": "", "logprobs": None, "finish_reason": None} for _ in range(num_choices)]
    for event in events:
        for part in event["choices"] if isinstance(event, dict) else ():
            choice = choices[part["index"]]
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            if part["logprobs"]:
                whole = choice["logprobs"] = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                for name, values in part["logprobs"].items():
                    whole[name] = None if values is None else whole[name] + values
    return choices


def test_a_whole_answer_has_the_fields_of_the_api_and_no_others() -> None:
    """Names and values are those of OpenAI's API."""
    body = post()[0].json
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": "demo",
        "choices": [{"index": 0, "text": "Hello wörld", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_a_stream_has_chunks_of_text_and_the_reason_with_the_last() -> None:
    """Chunks are completions themselves."""
    *chunks, done = post(stream=True, stream_options={"include_usage": True})[0].events
    assert done == "[DONE]"
    *chunks, usage = chunks
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 7
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo ", "wö", "rld"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3 + ["stop"]


def test_without_a_length_sixteen_tokens_are_asked_for() -> None:
    """As the specification of this endpoint says, unlike that of chats."""
    assert post()[1].router.asked["max_tokens"] == 16
    assert post(max_tokens=0)[1].router.asked["max_tokens"] == 0


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("hi", [{"text_input": "hi"}]),
        ("", [{"text_input": ""}]),
        (["a", "b"], [{"text_input": "a"}, {"text_input": "b"}]),
        ([1, 2, 3], [{"prompt_token_ids": [1, 2, 3]}]),
        ([[1, 2], [3]], [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]),
    ],
)
def test_each_prompt_is_one_call(prompt: Any, sent: list[dict[str, Any]]) -> None:
    """Texts and token ids go as they are."""
    client = post(prompt=prompt)[1]
    calls = [json.loads(call.body) for call in client.router.calls]
    assert [
        {key: value for key, value in call.items() if key in ("text_input", "prompt_token_ids")} for call in calls
    ] == sent
    assert len({call.request_id for call in client.router.calls}) == len(sent)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_to_several_prompts_are_numbered_prompt_by_prompt(stream: bool) -> None:
    """The index is the prompt's place times n, plus the answer's place; usage counts all of them once."""
    texts = ("one", "two", "six")
    scripts = {text: Script([SpokenAnswer(tokens_of(f"{text}{index}")) for index in range(2)]) for text in texts}
    client = ApiClient(lambda call: scripts[json.loads(call.body)["text_input"]])
    body = {
        "model": "demo", "prompt": list(scripts), "n": 2, "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }  # fmt: skip
    answer = client.post(PATH, body)
    choices = joined(answer.events, 6) if stream else answer.json["choices"]
    assert [choice["text"] for choice in choices] == ["one0", "one1", "two0", "two1", "six0", "six1"]
    usage = answer.events[-2]["usage"] if stream else answer.json["usage"]
    assert usage["prompt_tokens"] == 9
    assert usage["completion_tokens"] == 12
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    (reservation,) = client.limiter.reservations
    assert reservation.settled[0] == (9, 12)
    assert all(exchange.is_closed for exchange in client.router.exchanges)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_older_form(stream: bool) -> None:
    """Lists of one length; the token itself is always among the likeliest; offsets count characters."""
    script = Script(
        [
            SpokenAnswer(
                (
                    Token(1, b"a", -0.5, ((b"b", -0.25), (b"c", -1.0))),
                    Token(2, b" \xf0\x9f", -0.5, ((b" \xf0\x9f", -0.5), (b"c", -1.0))),
                    Token(3, b"\x98\x80", -0.25, ((b"d", -0.125), (b"e", -3.0))),
                    Token(4, b"z", -0.25, ((b"z", -0.25), (b"e", -3.0))),
                )
            )
        ]
    )
    answer, client = post(script, logprobs=2, stream=stream)
    (choice,) = joined(answer.events, 1) if stream else answer.json["choices"]
    assert choice["text"] == "a 😀z"
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": [-0.5, -0.5, -0.25, -0.25],
        "tokens": ["a", "bytes: \\xf0\\x9f", "bytes:\\x98\\x80", "z"],
        "top_logprobs": [
            {"b": -0.25, "c": -1.0, "a": -0.5},
            {"bytes: \\xf0\\x9f": -0.5, "c": -1.0},
            {"d": -0.125, "e": -3.0, "bytes:\\x98\\x80": -0.25},
            {"z": -0.25, "e": -3.0},
        ],
    }
    assert client.router.asked["num_top_log_probs"] == 2


def test_log_probabilities_without_the_likeliest_tokens() -> None:
    """`logprobs` 0 has the tokens' own."""
    answer, client = post(logprobs=0)
    logprobs = answer.json["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] is None
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 4
    assert "num_top_log_probs" not in client.router.asked


@pytest.mark.parametrize("stream", [False, True])
def test_an_evaluation_gets_the_scores_of_its_prompt(stream: bool) -> None:
    """`echo` with `logprobs` and no new token: what evaluation harnesses send for multiple choice."""
    script = Script([SpokenAnswer((), "length")], prompt=tokens_of("the cat sat", 7))
    answer, client = post(script, echo=True, logprobs=1, max_tokens=0, stream=stream, prompt=[7, 8, 9, 10])
    (choice,) = joined(answer.events, 1) if stream else answer.json["choices"]
    assert choice["text"] == "the cat sat"
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["the", " ca", "t s", "at"]
    assert logprobs["text_offset"] == [0, 3, 6, 9]
    assert logprobs["token_logprobs"] == [None, -0.375, -0.625, -0.875]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {" ca": -0.375}
    asked = client.router.asked
    assert (asked["echo"], asked["return_prompt_log_probs"], asked["max_tokens"]) == (True, True, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_have_no_length_in_the_text(stream: bool) -> None:
    """Each has its place among the tokens, and the offset of what follows."""
    prompt = (Token(1, b"<s>", is_text=False), Token(7, b"Hello"), Token(8, b" world"))
    said = (Token(2, b"<|x|>", is_text=False), Token(9, b"!"), Token(3, b"</s>", is_text=False))
    answer, _ = post(Script([SpokenAnswer(said)], prompt=prompt), echo=True, logprobs=1, stream=stream)
    (choice,) = joined(answer.events, 1) if stream else answer.json["choices"]
    assert choice["text"] == "Hello world!"
    assert choice["logprobs"]["tokens"] == ["<s>", "Hello", " world", "<|x|>", "!", "</s>"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 5, 11, 11, 12]


@pytest.mark.parametrize("family", ["byte_level_bpe", "llama_2", "gemma", "unigram"])
@pytest.mark.parametrize("skip", [False, True])
def test_offsets_are_those_of_the_tokenizers_own_decoding(family: str, skip: bool) -> None:
    """What the core says of a prompt's tokens gives the lengths of the texts before them."""
    tokenizer = tokenizer_of(family)
    special = [found for text in HIDDEN if (found := tokenizer.token_to_id(text)) is not None]
    words = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("Hello world", "the cat sat")]
    ids = [special[0], *words[0], special[-1], *words[1], special[0]]
    sequence = Sequence(1, ids, len(ids), 1, SamplingParams(), frozenset())
    sequence.prompt_log_probs.extend(TokenLogProbs(-1.0) for _ in ids[1:])
    output = OutputOptions(echo=True, skip_special_tokens=skip, token_bytes=True)
    (spelled,) = TokenSpelling(TokenBytes(tokenizer)).of_prompt(output, sequence)
    digits = [value.decode() for value in spelled.values.tolist()]
    event = GenerateEvent(prompt_token_bytes=digits, prompt_log_probs=[0.0] + [-1.0] * (len(ids) - 1))
    part = CompletionScores(0).put(prompt_scores(event), is_prompt=True)
    assert part.text_offset == [len(tokenizer.decode(ids[:at], skip_special_tokens=skip)) for at in range(len(ids))]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_before_the_answer_and_counts_only_the_answer(stream: bool) -> None:
    """The prompt's tokens are no output, also for a client that leaves in the middle."""
    answer, client = post(echo=True, stream=stream)
    (choice,) = joined(answer.events, 1) if stream else answer.json["choices"]
    assert choice["text"] == "abcdefghiHello wörld"
    assert client.limiter.reservations[0].settled[0] == (3, 4)


def test_best_of_is_taken_where_it_means_nothing() -> None:
    """Older clients send it with every request."""
    assert post(best_of=1)[0].status == 200
    script = Script([SpokenAnswer(tokens_of("x"))] * 2)
    assert post(script, best_of=2, n=2)[0].status == 200


def test_a_refused_prompt_of_several_ends_the_others() -> None:
    """There is one answer to a request, so the calls that run are closed."""

    def say(call: Any) -> Script:
        if json.loads(call.body)["text_input"] == "bad":
            raise refusal("[INVALID_ARG] text_input: has no tokens for this tokenizer")
        return HELLO

    client = ApiClient(say)
    answer = client.post(PATH, {"model": "demo", "prompt": ["a", "bad", "b"]})
    assert answer.error == (400, "invalid_request_error", "invalid_value", "prompt")
    assert all(exchange.is_closed for exchange in client.router.exchanges)
    assert client.limiter.reservations[0].settled == [(None, 0)], (
        "the others were taken, and said nothing of their cost"
    )


@pytest.mark.parametrize(("fields", "reasons"), [({}, ("stop",)), ({"max_tokens": 0, "logprobs": 0}, ())])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_has_ended_for_a_reason_only_where_something_was_generated(
    fields: dict[str, Any], reasons: tuple[str, ...], stream: bool
) -> None:
    """An answer of no tokens always ends by its length, which says nothing of the model."""
    spoken = SpokenAnswer((), "length") if fields else SpokenAnswer(tokens_of("x"))
    client = ApiClient(Script([spoken]))
    answer = client.post("/v1/completions", {"model": "demo", "prompt": "a", "echo": True, "stream": stream, **fields})
    assert answer.status == 200
    assert answer.record.finish_reasons == reasons
