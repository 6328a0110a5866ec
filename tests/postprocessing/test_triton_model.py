"""The shell: tensors in and out, acknowledgements, and errors that stay with their own request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import fake_triton as triton
from tests.tokenizer_zoo import tokenizer_of
from trident_ensemble.acknowledgements import GONE, AcknowledgementTable, encode
from trident_ensemble.errors import ArtifactError, ConfigError

TritonPythonModel = triton.load_shell("trident_postprocessing")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "core" / "2" / "tokenizer").mkdir(parents=True)
    (tmp_path / "core" / "1").mkdir()
    (tmp_path / "core" / "2" / "engine.json").write_text('{"limits": {"max_seq_len": 64}}')
    tokenizer_of("byte_level_bpe").save(str(tmp_path / "core" / "2" / "tokenizer" / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def table() -> Iterator[AcknowledgementTable]:
    made = AcknowledgementTable(num_slots=2)
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


def request(new: list[int], context: list[int], chunk: tuple[int, ...]) -> triton.InferenceRequest:
    return triton.InferenceRequest(
        [
            triton.Tensor("output_ids", np.array([new], np.int32)),
            triton.Tensor("context_ids", np.array([context], np.int32)),
            triton.Tensor("chunk", np.array([chunk], np.int64)),
        ]
    )


def execute(model: Any, *requests: triton.InferenceRequest) -> list[triton.InferenceResponse]:
    """The one, final response of each request."""
    assert model.execute(list(requests)) is None
    assert all(request.sender.is_closed and len(request.sender.responses) == 1 for request in requests)
    return [request.sender.responses[0] for request in requests]


def acknowledged(table: AcknowledgementTable, slot: int, generation: int) -> int:
    assert generation
    return table.num_acknowledged([slot])[0]


def failure(response: triton.InferenceResponse) -> triton.TritonError:
    error = response.error()
    assert error is not None
    return error


def text(response: triton.InferenceResponse) -> str:
    error = response.error()
    assert error is None, error.message()
    (tensor,) = response.output_tensors()
    assert tensor.name() == "text_output"
    assert tensor.as_numpy().shape == (1, 1)
    value: bytes = tensor.as_numpy()[0, 0]
    return value.decode()


def test_chunks_of_a_batch_become_their_texts(repository: Path, table: AcknowledgementTable) -> None:
    model = start(repository)
    ids = tokenizer_of("byte_level_bpe").encode("smile 😀").ids
    streams = [table.open(), table.open()]
    chunks = [(table.table_id, slot, encode(generation, 1), 0) for slot, generation in streams]
    last = (table.table_id, streams[0][0], encode(streams[0][1], 2), 1)
    responses = execute(model, request(ids[:-1], [], chunks[0]), request(ids, [], chunks[1]))
    first, whole = [text(response) for response in responses]
    assert whole == "smile 😀"
    (end,) = execute(model, request(ids[-1:], ids[:-1], last))
    assert first + text(end) == "smile 😀"
    assert [acknowledged(table, *stream) for stream in streams] == [2, 1]


def test_an_empty_last_chunk(repository: Path) -> None:
    (response,) = execute(start(repository), request([], [], (0, 0, 0, 1)))
    assert text(response) == ""


def test_a_bad_request_harms_no_other(repository: Path, table: AcknowledgementTable) -> None:
    model = start(repository)
    good = tokenizer_of("byte_level_bpe").encode("good").ids
    slot, generation = table.open()
    responses = execute(
        model,
        request(good, [], (0, 0, 0, 1)),
        request([-1], [], (table.table_id, slot, encode(generation, 1), 1)),
        request(good, [], (0, 0, 0)),
        triton.InferenceRequest([triton.Tensor("chunk", np.array([[0, 0, 0, 1]], np.int64))]),
        triton.InferenceRequest([]),
        request(good, [], (0, 0, 0, 1)),
    )
    assert text(responses[0]) == text(responses[5]) == "good"
    errors = [failure(response) for response in responses[1:5]]
    assert [error.message() for error in errors] == [
        "[INVALID_ARG] output_ids: -1 is no token id; the least is 0",
        "[INVALID_ARG] chunk: must hold 4 values, not 3",
        "[INVALID_ARG] context_ids: missing",
        "[INVALID_ARG] chunk: missing",
    ]
    assert all(error.code() == triton.TritonError.INVALID_ARG for error in errors)
    assert acknowledged(table, slot, generation) == 1, "delivered, though it cannot be decoded"


def test_more_ids_than_a_sequence_can_have_are_refused_unread(repository: Path) -> None:
    too_many = [5] * 65
    responses = execute(start(repository), request(too_many, [], (0, 0, 0, 1)), request([5], too_many, (0, 0, 0, 1)))
    assert [failure(response).message() for response in responses] == [
        "[INVALID_ARG] output_ids: 65 values are too many; the most is 64",
        "[INVALID_ARG] context_ids: 65 values are too many; the most is 64",
    ]


def test_a_chunk_is_acknowledged_after_its_text_has_left(repository: Path, table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    seen = []

    class Sender(triton.ResponseSender):
        def send(self, response: triton.InferenceResponse | None = None, flags: int = 0) -> None:
            seen.append(acknowledged(table, slot, generation))
            super().send(response, flags)

    chunk = request([3], [], (table.table_id, slot, encode(generation, 1), 1))
    chunk.sender = Sender()
    execute(start(repository), chunk)
    assert [*seen, acknowledged(table, slot, generation)] == [0, 1]


def test_a_client_that_left_is_told_to_the_core(repository: Path, table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    chunk = request([3], [], (table.table_id, slot, encode(generation, 1), 0))
    chunk.sender.client_left = True
    execute(start(repository), chunk)
    assert acknowledged(table, slot, generation) == GONE


def test_an_unforeseen_failure_is_answered(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(repository)
    monkeypatch.setattr(model, "_detokenizer", None)
    (response,) = execute(model, request([1], [], (0, 0, 0, 1)))
    assert failure(response).code() == triton.TritonError.INTERNAL
    assert "postprocessing failed" in failure(response).message()


def test_settings_are_checked_at_load(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"parameters\.colour: unknown"):
        start(repository, colour="blue")
    with pytest.raises(ArtifactError, match="other: no version folder"):
        start(repository, core_model="other")
