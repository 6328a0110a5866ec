"""The shell: tensors in and out, acknowledgements, and errors that stay with their own request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import triton
from tests.fakes.manifests import SMALL_VOCAB_SIZE, write_small_manifest
from tests.tokenizer_zoo import tokenizer_of
from trident_ensemble.acknowledgements import GONE, AcknowledgementTable
from trident_ensemble.contract import layout
from trident_ensemble.contract.chunk_header import ALL, VERSION, ChunkHeader, Part
from trident_ensemble.contract.errors import ArtifactError, ConfigError
from trident_ensemble.text.anchors import anchor_table

TritonPythonModel = triton.load_shell("trident_postprocessing")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "core" / "2" / "tokenizer").mkdir(parents=True)
    (tmp_path / "core" / "1").mkdir()
    write_small_manifest(tmp_path / "core" / "2", 64)
    file = tmp_path / "core" / "2" / "tokenizer" / "tokenizer.json"
    tokenizer_of("byte_level_bpe").save(str(file))
    np.save(tmp_path / "core" / "2" / layout.TOKEN_TABLE_FILE, anchor_table(file, SMALL_VOCAB_SIZE + 300))
    return tmp_path


@pytest.fixture
def table() -> Iterator[AcknowledgementTable]:
    made = AcknowledgementTable(num_columns=2)
    yield made
    made.close()


def start(repository: Path, **parameters: str) -> Any:
    model = TritonPythonModel()
    wrapped = {key: {"string_value": value} for key, value in parameters.items()}
    model.initialize(
        {
            "model_repository": str(repository / "postprocessing"),
            "model_instance_name": "postprocessing_0_3",
            "model_config": json.dumps({"parameters": wrapped}),
        }
    )
    return model


def request(
    new: list[int],
    context: list[int],
    parts: list[Part] | None = None,
    *,
    stream: tuple[int, int, int, int] = (0, 0, 0, 0),
    is_last: bool = True,
    skip: bool = True,
    markers: tuple[int, ...] = (),
) -> triton.InferenceRequest:
    """All of `new` in one part, unless there are others; nobody wants an acknowledgement, unless `stream` says so."""
    header = ChunkHeader(*stream, is_last, skip, tuple(parts or [Part(len(new))]), context, markers)
    return raw_request(new, header.pack(), len(header.parts))


def padded(sequences: list[list[int]]) -> list[int]:
    """Rows of one length after one another."""
    longest = max(map(len, sequences))
    return [token_id for own in sequences for token_id in [*own, *[0] * (longest - len(own))]]


def raw_request(new: list[int], chunk: list[int], num_rows: int = 1) -> triton.InferenceRequest:
    rows = np.array(new, np.int32).reshape(1, *((num_rows, -1) if len(new) % num_rows == 0 else (1, -1)))
    return triton.InferenceRequest(
        [
            triton.Tensor("output_ids", rows),
            triton.Tensor("chunk", np.array([chunk], np.int64)),
        ]
    )


def execute(model: Any, *requests: triton.InferenceRequest) -> list[triton.InferenceResponse]:
    """The one, final response of each request."""
    assert model.execute(list(requests)) is None
    assert all(request.sender.is_closed and len(request.sender.responses) == 1 for request in requests)
    return [request.sender.responses[0] for request in requests]


def acknowledged(table: AcknowledgementTable, column: int, secret: int) -> int:
    assert secret
    return table.num_acknowledged([column])[0]


def failure(response: triton.InferenceResponse) -> triton.TritonError:
    error = response.error()
    assert error is not None
    return error


def texts(response: triton.InferenceResponse) -> list[str]:
    error = response.error()
    assert error is None, error.message()
    tensor, *_ = response.output_tensors()
    assert tensor.name() == "text_output"
    return [value.decode() for value in tensor.as_numpy()]


def text(response: triton.InferenceResponse) -> str:
    (only,) = texts(response)
    return only


def encode_text(text: str) -> list[int]:
    ids: list[int] = tokenizer_of("byte_level_bpe").encode(text).ids
    return ids


def test_triton_model_chunks_of_a_batch_become_their_texts(repository: Path, table: AcknowledgementTable) -> None:
    model = start(repository)
    ids = encode_text("smile 😀")
    streams = [table.open(), table.open()]
    chunks = [(table.table_id, column, secret, 1) for column, secret in streams]
    last = (table.table_id, streams[0][0], streams[0][1], 2)
    responses = execute(
        model, request(ids[:-1], [], stream=chunks[0], is_last=False), request(ids, [], stream=chunks[1], is_last=False)
    )
    first, whole = [text(response) for response in responses]
    assert whole == "smile 😀"
    (end,) = execute(model, request(ids[-1:], ids[:-1], stream=last))
    assert first + text(end) == "smile 😀"
    assert [acknowledged(table, *stream) for stream in streams] == [2, 1]


def test_triton_model_an_empty_last_chunk(repository: Path) -> None:
    (response,) = execute(start(repository), request([], []))
    assert text(response) == ""


def test_triton_model_each_sequence_of_a_response_is_decoded_by_itself(repository: Path) -> None:
    """The second begins with the rest of the first's broken character, which is then no character of its own."""
    smile = encode_text("😀")
    assert len(smile) > 1
    model = start(repository)
    sequences = [[*encode_text("one"), *smile[:-1]], smile[-1:], [], encode_text("four")]
    (response,) = execute(model, request(padded(sequences), [], [Part(len(ids)) for ids in sequences]))
    assert response.output_tensors()[0].as_numpy().shape == (4,)
    assert texts(response) == [
        tokenizer_of("byte_level_bpe").decode(ids, skip_special_tokens=True) for ids in sequences
    ]


def test_triton_model_silent_ids_are_no_text(repository: Path) -> None:
    ids = encode_text("abc")
    parts = [Part(len(ids), num_hidden=1), Part(len(ids), num_hidden=len(ids)), Part(len(ids))]
    (response,) = execute(start(repository), request(ids * 3, [], parts))
    assert texts(response) == [tokenizer_of("byte_level_bpe").decode(ids[:-1]), "", "abc"]


def test_triton_model_characters_beyond_a_stop_string_are_no_text(repository: Path) -> None:
    """Counted in characters, not in bytes or tokens, of this chunk's own text."""
    ids = encode_text("é😀é 東京")
    cuts = [0, 1, 2, 4, 50, ALL]
    model = start(repository)
    (whole,) = execute(model, request(ids * 6, [], [Part(len(ids), num_characters=cut) for cut in cuts]))
    assert texts(whole) == ["", "é", "é😀", "é😀é ", "é😀é 東京", "é😀é 東京"]
    begun = encode_text("é😀é ")
    assert ids[: len(begun)] == begun
    (later,) = execute(model, request(ids[len(begun) :], begun, [Part(len(ids) - len(begun), num_characters=1)]))
    assert text(later) == "東"


def test_triton_model_special_tokens_are_text_where_the_header_says_so(repository: Path) -> None:
    ids = [tokenizer_of("byte_level_bpe").get_vocab()["<s>"], *encode_text("go")]
    model = start(repository)
    assert [text(answer) for answer in execute(model, request(ids, []), request(ids, [], skip=False))] == [
        "go",
        "<s>go",
    ]


def markers_of(response: triton.InferenceResponse) -> list[list[int]]:
    (tensor,) = response.output_tensors()[1:]
    assert (tensor.name(), tensor.as_numpy().dtype.name, tensor.as_numpy().ndim) == ("markers", "int32", 3)
    (markers,) = tensor.as_numpy().tolist()
    return list(markers)


@pytest.mark.parametrize("skip", [True, False])
def test_triton_model_markers_are_left_out_and_reported(repository: Path, skip: bool) -> None:
    added, special = (tokenizer_of("byte_level_bpe").get_vocab()[token] for token in ("<think>", "<|late|>"))
    ids = [added, *encode_text("a\u00e9"), special, *encode_text("b"), added, added]
    model = start(repository)
    response, none, others = execute(
        model,
        request(ids, [], skip=skip, markers=(added, special)),
        request(encode_text("ab"), [], markers=(added,)),
        request([added, special], [], skip=False),
    )
    assert text(response) == "a\u00e9b"
    assert markers_of(response) == [[0, 0, added], [0, 2, special], [0, 3, added], [0, 3, added]]
    assert (text(none), len(none.output_tensors())) == ("ab", 1), "nobody pays for a tensor that says nothing"
    assert (text(others), len(others.output_tensors())) == ("<think><|late|>", 1)


def test_triton_model_markers_beyond_the_text_are_not_reported(repository: Path) -> None:
    marker = tokenizer_of("byte_level_bpe").get_vocab()["<think>"]
    ids = [marker, *encode_text("abcd"), marker, *encode_text("e"), marker]
    parts = [
        Part(len(ids), num_characters=4), Part(len(ids), num_characters=3), Part(len(ids), num_hidden=1),
        Part(1), Part(len(ids), num_characters=0),
    ]  # fmt: skip
    (response,) = execute(start(repository), request(ids * len(parts), [], parts, markers=(marker,)))
    assert texts(response) == ["abcd", "abc", "abcde", "", ""]
    assert markers_of(response) == [
        [0, 0, marker], [0, 4, marker], [1, 0, marker], [2, 0, marker], [2, 4, marker], [3, 0, marker], [4, 0, marker],
    ]  # fmt: skip


def test_triton_model_a_character_around_a_marker_comes_whole_behind_it(repository: Path) -> None:
    marker = tokenizer_of("byte_level_bpe").get_vocab()["<think>"]
    first, *rest = encode_text("\U0001f600")
    assert rest
    model = start(repository)
    begin, end = execute(
        model,
        request([first, marker], [], is_last=False, markers=(marker,)),
        request(rest, [first, marker], markers=(marker,)),
    )
    assert (text(begin), markers_of(begin)) == ("", [[0, 0, marker]])
    assert (text(end), len(end.output_tensors())) == ("\U0001f600", 1)


def test_triton_model_a_bad_request_harms_no_other(repository: Path, table: AcknowledgementTable) -> None:
    model = start(repository)
    good = encode_text("good")
    column, secret = table.open()
    stream = (table.table_id, column, secret, 1)
    responses = execute(
        model,
        request(good, []),
        request([-1], [], stream=stream),
        raw_request(good, [VERSION, 0, 0, 1]),
        triton.InferenceRequest(
            [triton.Tensor("chunk", np.array([[VERSION, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, -1]], np.int64))]
        ),
        triton.InferenceRequest([]),
        request([5, 6, 7], [], [Part(1), Part(1)]),
        request([5], [], [Part(1), Part(1)]),
        request([5, 6], [7], [Part(1), Part(1)]),
        request([5], [2**31]),
        raw_request([5], [VERSION, 0, 0, 0, 0, 1, 1, 0, 0, 1, 2, -1]),
        raw_request([5], [0] * 65601),
        request(good, []),
    )
    assert text(responses[0]) == text(responses[-1]) == "good"
    errors = [failure(response) for response in responses[1:-1]]
    assert [error.message() for error in errors] == [
        "[INVALID_ARG] output_ids: -1 is not a token id; the least is 0",
        "[INVALID_ARG] chunk: must hold at least 9 values, not 4",
        "[INVALID_ARG] output_ids: missing",
        "[INVALID_ARG] chunk: missing",
        "[INVALID_ARG] output_ids: must hold 2 rows of 1 ids, as chunk says, not 3",
        "[INVALID_ARG] output_ids: must hold 2 rows of 1 ids, as chunk says, not 1",
        "[INVALID_ARG] chunk: must have no context ids: only a stream of one sequence has a context",
        "[INVALID_ARG] chunk: context ids must be from 0 to 2147483647",
        "[INVALID_ARG] chunk: Part(num_ids=1, num_hidden=2, num_characters=-1) is not a part of a response",
        "[INVALID_ARG] chunk: 65601 values are too many; the most is 65600",
    ]
    assert all(error.code() == triton.TritonError.INVALID_ARG for error in errors)
    assert acknowledged(table, column, secret) == 1, "delivered, though it cannot be decoded"


def test_triton_model_more_ids_than_its_sequences_can_have_are_refused_unread(repository: Path) -> None:
    too_many = [5] * 65
    model = start(repository)
    responses = execute(
        model, request(too_many, []), request([5], too_many), request([5] * 130, [], [Part(64), Part(65)])
    )
    assert [failure(response).message() for response in responses] == [
        "[INVALID_ARG] output_ids: 65 values are too many; the most is 64",
        "[INVALID_ARG] chunk: 65 context ids are too many; the most is 64",
        "[INVALID_ARG] output_ids: 130 values are too many; the most is 128",
    ]
    (response,) = execute(model, request([5] * 128, [], [Part(64), Part(64)]))
    assert len(texts(response)) == 2


def test_triton_model_a_chunk_is_acknowledged_after_its_text_has_left(
    repository: Path, table: AcknowledgementTable
) -> None:
    column, secret = table.open()
    seen = []

    class Sender(triton.ResponseSender):
        def send(self, response: triton.InferenceResponse | None = None, flags: int = 0) -> None:
            seen.append(acknowledged(table, column, secret))
            super().send(response, flags)

    chunk = request([3], [], stream=(table.table_id, column, secret, 1))
    chunk.sender = Sender()
    execute(start(repository), chunk)
    assert [*seen, acknowledged(table, column, secret)] == [0, 1]


def test_triton_model_a_client_that_left_is_told_to_the_core(repository: Path, table: AcknowledgementTable) -> None:
    column, secret = table.open()
    chunk = request([3], [], stream=(table.table_id, column, secret, 1), is_last=False)
    chunk.sender.client_left = True
    execute(start(repository), chunk)
    assert acknowledged(table, column, secret) == GONE


def test_triton_model_an_unforeseen_failure_is_answered(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(repository)
    monkeypatch.setattr(model, "_detokenizer", None)
    (response,) = execute(model, request([1], []))
    assert failure(response).code() == triton.TritonError.INTERNAL
    assert "postprocessing failed" in failure(response).message()


class _Breaking(triton.ResponseSender):
    """Does not take the first response, as Triton does when its memory is full."""

    broken = False

    def send(self, response: triton.InferenceResponse | None = None, flags: int = 0) -> None:
        if not self.broken:
            self.broken = True
            raise triton.TritonModelException("Failed to allocate memory")
        super().send(response, flags)


def test_triton_model_a_stream_whose_text_cannot_be_sent_ends_and_its_neighbour_is_served(
    repository: Path, table: AcknowledgementTable
) -> None:
    column, secret = table.open()
    chunk, neighbour = request([3], [], stream=(table.table_id, column, secret, 1)), request(encode_text("good"), [])
    chunk.sender = _Breaking()
    failed, good = execute(start(repository), chunk, neighbour)
    assert failure(failed).message().startswith("[INTERNAL] the text could not be sent")
    assert "allocate" not in failure(failed).message()
    assert text(good) == "good"
    assert acknowledged(table, column, secret) == GONE, "what follows would have a gap"


def test_triton_model_a_panic_is_answered(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As libraries written in Rust raise it."""

    def panic(*_: Any, **__: Any) -> str:
        raise Panic

    model = start(repository)
    monkeypatch.setattr(model._detokenizer, "text", panic)
    (response,) = execute(model, request([1], []))
    assert failure(response).code() == triton.TritonError.INTERNAL


def test_triton_model_settings_are_checked_at_load(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"parameters\.colour: unknown"):
        start(repository, colour="blue")
    with pytest.raises(ArtifactError, match="other: no version folder"):
        start(repository, core_model="other")
