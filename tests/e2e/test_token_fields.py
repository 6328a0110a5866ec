"""What a gateway needs of the real server: prompts of ids, open lengths, bytes, markers and reasons of errors."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.checkpoints import reference_model, tiny_tokenizer
from tests.e2e.clients import ask_grpc, events, grpc_stream, make_inputs
from tests.e2e.server import Server, post, until
from trident_ensemble.contract.errors import read_wire_message

GENERATE, STREAM = (f"/v2/models/ensemble/{way}" for way in ("generate", "generate_stream"))
#: Room for 4608 tokens; 18 are left.
LONG_IDS = [5 + place % 300 for place in range(4590)]
IDS = [300, 17, 254, 101, 17, 399, 42]
PLAIN: dict[str, Any] = {"text_input": "The trident has three prongs", "max_tokens": 24, "ignore_eos": True}

NO_GUIDE = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "(("}


def _generate(server: Server, **fields: Any) -> dict[str, Any]:
    status, body = post(server, GENERATE, fields)
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def _stream(server: Server, **fields: Any) -> list[dict[str, Any]]:
    status, body = post(server, STREAM, fields | {"stream": True})
    assert status == 200, body
    return events(body)


def _flat(value: Any) -> list[Any]:
    """Triton writes a tensor of one element as a scalar, and others as a flat list."""
    return value if isinstance(value, list) else [value]


def _infer(server: Server, **fields: Any) -> Any:
    with grpcclient.InferenceServerClient(server.grpc) as client:
        return client.infer("ensemble_unary", make_inputs(grpcclient, fields), client_timeout=60)


@pytest.mark.parametrize("fields", [{}, {"max_tokens": -1}])
def test_token_fields_an_open_length_is_what_the_context_leaves(server: Server, fields: dict[str, int]) -> None:
    asked: dict[str, Any] = {"prompt_token_ids": LONG_IDS, "ignore_eos": True, **fields}
    assert _generate(server, **asked)["num_output_tokens"] == 18
    assert _stream(server, **asked)[-1]["num_output_tokens"] == 18
    assert ask_grpc(server.grpc, **asked).num_output_tokens == 18
    assert _infer(server, **asked).as_numpy("num_output_tokens").item() == 18
    with httpclient.InferenceServerClient(server.http) as client:
        assert client.infer("ensemble_unary", make_inputs(httpclient, asked)).as_numpy("num_output_tokens").item() == 18


@pytest.mark.parametrize("fields", [{}, {"request_output_len": -1}])
def test_token_fields_token_clients_may_leave_it_open_too(server: Server, fields: dict[str, int]) -> None:
    inputs = make_inputs(grpcclient, {"input_ids": LONG_IDS, "ignore_eos": True, **fields})
    with grpc_stream(server.grpc, inputs, "core") as results:
        (result,) = results
    assert result.as_numpy("output_ids").shape == (1, 1, 18)
    assert result.as_numpy("finish_reason").item() == b"length"


@pytest.mark.parametrize("stream", [False, True])
def test_token_fields_an_evaluation_scores_a_prompt_and_generates_nothing(
    server: Server, checkpoint: Path, stream: bool
) -> None:
    fields = {
        "prompt_token_ids": IDS, "max_tokens": 0, "echo": True, "return_prompt_log_probs": True, "num_top_log_probs": 2,
        "return_token_bytes": True, "skip_special_tokens": False,
    }  # fmt: skip
    (answer,) = _stream(server, **fields) if stream else [_generate(server, **fields)]
    until(lambda: server.num_used_blocks == 0 and server.num_active == 0, 30, "the blocks to be free")
    with torch.no_grad():
        logits = reference_model(checkpoint)(torch.tensor([IDS])).logits[0].double()
    scores = torch.log_softmax(logits, -1)[:-1]
    expected = [0.0, *scores.gather(1, torch.tensor(IDS[1:])[:, None])[:, 0].tolist()]
    np.testing.assert_allclose(answer["prompt_log_probs"], expected, atol=2e-2)
    assert (answer["finish_reason"], answer["num_input_tokens"], answer["num_output_tokens"]) == ("length", len(IDS), 0)
    assert answer["output_ids"] == IDS
    assert answer["text_output"] == tiny_tokenizer().decode(IDS, skip_special_tokens=False)
    joined = b"".join(map(bytes.fromhex, answer["prompt_token_bytes"]))
    assert joined.decode(errors="replace") == answer["text_output"]
    tops = answer["prompt_top_log_prob_ids"]
    assert list(map(bytes.fromhex, answer["prompt_top_token_bytes"])) == [_spelled(token_id) for token_id in tops]
    assert len(tops) == 2 * (len(IDS) - 1)


def test_token_fields_ids_are_the_text_that_they_spell(server: Server) -> None:
    ids = tiny_tokenizer()(PLAIN["text_input"]).input_ids
    by_text = _generate(server, **PLAIN)
    by_ids = _generate(
        server, **{name: value for name, value in PLAIN.items() if name != "text_input"}, prompt_token_ids=ids
    )
    assert by_ids["output_ids"] == by_text["output_ids"]
    cut = ask_grpc(server.grpc, prompt_token_ids=LONG_IDS * 3, max_tokens=2, truncate_prompt_tokens=-1)
    assert cut.num_input_tokens == 4606


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"prompt_token_ids": [*LONG_IDS, *[5] * 18], "max_tokens": 1}, "context_length", "prompt_token_ids"),
        ({"text_input": "a b " * 5000, "max_tokens": 4}, "context_length", "text_input"),
        ({"prompt_token_ids": IDS, "max_tokens": 4602}, "context_length", "max_tokens"),
        ({**PLAIN, **NO_GUIDE}, "invalid_guide", "guided_decoding_guide"),
        ({"prompt_token_ids": [400]}, "", "prompt_token_ids"),
        ({"prompt_token_ids": IDS, "text_input": "a"}, "", "text_input"),
        ({**PLAIN, "marker_ids": list(range(17))}, "", "marker_ids"),
        ({**PLAIN, "return_token_bytes": True}, "", "return_token_bytes"),
    ],
)  # fmt: skip
def test_token_fields_programs_can_read_what_was_wrong(
    server: Server, fields: dict[str, Any], reason: str, field: str
) -> None:
    said = []
    for path in (GENERATE, STREAM):
        status, body = post(server, path, fields)
        assert status == 400
        said.append(json.loads(body.removeprefix("data: "))["error"])
    for ask in (lambda: ask_grpc(server.grpc, **fields), lambda: _infer(server, **fields)):
        with pytest.raises(InferenceServerException) as caught:
            ask()
        said.append(str(caught.value))
    for message in said:
        error = read_wire_message(message)
        assert (error.code, error.reason, error.field) == ("INVALID_ARG", reason, field)
        assert message.endswith(error.text)
        assert not error.text.startswith("[")


def _spelled(token_id: int) -> bytes:
    """The bytes that the tokenizers library has for a token, by its own alphabet."""
    token: str = tiny_tokenizer().convert_ids_to_tokens(token_id)
    if token.startswith("<|"):
        return token.encode()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}
    return bytes(alphabet[character] for character in token)


@pytest.mark.parametrize("stream", [False, True])
def test_token_fields_every_token_with_a_log_prob_has_its_bytes(server: Server, stream: bool) -> None:
    fields = {**PLAIN, "num_top_log_probs": 3, "return_token_bytes": True, "stream_interval_ms": 0}
    answers = _stream(server, **fields) if stream else [_generate(server, **fields)]
    ids, spelled, top_ids, tops = (
        [value for answer in answers for value in _flat(answer.get(name, []))]
        for name in ("output_ids", "output_token_bytes", "top_log_prob_ids", "top_token_bytes")
    )
    assert (len(spelled), len(tops)) == (24, 72)
    assert [one.startswith("!") for one in spelled + tops] == [token_id <= 4 for token_id in ids + top_ids]
    raw, raw_tops = ([bytes.fromhex(one.removeprefix("!")) for one in several] for several in (spelled, tops))
    assert raw == [_spelled(token_id) for token_id in ids]
    assert raw_tops == [_spelled(token_id) for token_id in top_ids]
    text = "".join(answer["text_output"] for answer in answers)
    shown = [one for one, token_id in zip(raw, ids, strict=True) if token_id > 4]
    assert b"".join(shown).decode(errors="replace") == text
    for result in ask_grpc(server.grpc, **fields, stream=stream).results:
        assert result.as_numpy("output_token_bytes").shape == result.as_numpy("output_ids").shape


def _markers_of(ids: list[int], markers: set[int]) -> tuple[str, list[tuple[int, int]]]:
    """Text and markers by Python's own incremental decoder."""
    decoder, text, found = codecs.getincrementaldecoder("utf-8")("replace"), "", []
    special = set(tiny_tokenizer().all_special_ids)
    for token_id in ids:
        if token_id in markers:
            found.append((len(text), token_id))
        elif token_id not in special:
            text += decoder.decode(_spelled(token_id))
    return text + decoder.decode(b"", True), found


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_token_fields_markers_come_by_id_beside_a_text_without_them(server: Server, num_sequences: int) -> None:
    asked: dict[str, Any] = {
        "text_input": "on and on", "max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 5,
        "stream_interval_ms": 0, "num_return_sequences": num_sequences,
        "logit_bias": json.dumps({"2": 6.0, "300": 6.0}),
    }  # fmt: skip
    plain = ask_grpc(server.grpc, **asked).last("output_ids")[0].tolist()
    markers = {2, 300}
    assert all(markers & set(row) for row in plain)
    whole = _generate(server, **asked, marker_ids=sorted(markers))
    expected = [_markers_of(row, markers) for row in plain]
    assert _flat(whole["text_output"]) == [text for text, _ in expected]
    reported = np.array(whole["markers"]).reshape(-1, 3).tolist()
    assert reported == [[row, *marker] for row, (_, found) in enumerate(expected) for marker in found]
    texts = [""] * num_sequences
    found: list[list[tuple[int, int]]] = [[] for _ in range(num_sequences)]
    for event in _stream(server, **asked, marker_ids=sorted(markers)):
        index = event.get("sequence_index", 0)
        for row, place, token_id in np.array(event.get("markers", [])).reshape(-1, 3).astype(int).tolist():
            assert (row, place <= len(event["text_output"])) == (0, True)
            found[index].append((len(texts[index]) + place, token_id))
        texts[index] += event["text_output"]
    assert list(zip(texts, found, strict=True)) == expected
    unary = _infer(server, **asked, marker_ids=sorted(markers)).as_numpy("markers")
    assert unary.shape == (1, len(reported), 3)
    assert unary[0].tolist() == reported


@pytest.mark.parametrize("stream", [False, True])
def test_token_fields_a_marker_that_ends_the_output_is_not_in_it(server: Server, stream: bool) -> None:
    plain = ask_grpc(server.grpc, **PLAIN).output_ids
    end, first = plain[10], plain.index(plain[10])
    fields = {**PLAIN, "stream": stream, "stop_token_ids": [end], "marker_ids": [end, plain[0]]}
    markers = ask_grpc(server.grpc, **fields).joined("markers")
    assert markers[2::3] == [token_id for token_id in plain[:first] if token_id == plain[0]]
    kept = ask_grpc(server.grpc, **fields, include_stop_str_in_output=True).joined("markers")
    assert kept[2::3] == [*markers[2::3], end]


def test_token_fields_a_stream_begins_with_the_length_of_its_prompt(server: Server) -> None:
    fields = {**PLAIN, "stream_interval_ms": 0, "num_return_sequences": 2}
    num_input_tokens = len(tiny_tokenizer()(PLAIN["text_input"]).input_ids)
    answers = _stream(server, **fields)
    said = [event.get("num_input_tokens") for event in answers]
    assert said[0] == num_input_tokens
    for event, number in list(zip(answers, said, strict=True))[1:]:
        assert number == (num_input_tokens if "finish_reason" in event else None)
    silent = _stream(server, **fields, return_num_input_tokens=False)
    assert not any("num_input_tokens" in event for event in silent)
