"""What responses say beside their tokens: which outputs, when, in which shape, and with which values."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.fakes.core import SPEC, Client
from tests.fakes.serving import Speller, context, serving, spell
from trident_backend.engine.mock import MockEngine
from trident_backend.requests.request import Request, parse_request
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.sequence import FinishReason
from trident_backend.serving.output_tensors import OutputTensorBuilder
from trident_backend.serving.responses import ResponseSlice
from trident_ensemble.contract import tensors

REPORTER = OutputTensorBuilder(SPEC.block_size, 10**18, Speller())
ALWAYS = {
    "finish_reason", "stop_reason", "num_input_tokens", "num_output_tokens", "num_cached_tokens", "used_seed",
    "sequence_length", "batch_index", "sequence_index",
}  # fmt: skip
PERF = {
    "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", "kv_cache_reused_blocks",
    "kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks", "total_draft_tokens", "total_accepted_draft_tokens",
    "acceptance_rate",
}  # fmt: skip
_KINDS = {"STRING": "O", "INT32": "i", "INT64": "i", "UINT64": "u", "FP32": "f"}


def _request(num_output_tokens: tuple[int, ...] = (3,), **fields: Any) -> Request:
    """A prompt of five tokens and ended outputs of these lengths, with log probabilities where they are wanted."""
    values = {"input_ids": [1, 2, 3, 4, 5], "max_tokens": 9, "num_return_sequences": len(num_output_tokens)} | fields
    request = parse_request(itertools.count(1), values, context(), 100.0)
    for number, (sequence, num_tokens) in enumerate(zip(request.sequences, num_output_tokens, strict=True)):
        params, num_top = sequence.sampling, sequence.sampling.num_top_log_probs
        sequence.token_ids += [10 * number + place for place in range(num_tokens)]
        sequence.finish_reason = FinishReason.LENGTH
        if params.log_probs:
            sequence.log_probs += [_item(-1.0 * number - place / 8, num_top) for place in range(num_tokens)]
        if params.prompt_log_probs:
            sequence.prompt_log_probs += [_item(-float(place), num_top) for place in range(1, 5)]
    return request


def _item(log_prob: float, num_top: int) -> TokenLogProbs:
    return TokenLogProbs(log_prob, tuple(range(num_top)), tuple(log_prob - rank for rank in range(num_top)))


def _outputs(
    request: Request, *spans: ResponseSlice, is_first: bool = False, is_last: bool = True
) -> dict[str, npt.NDArray[Any]]:
    spans = spans or tuple(
        ResponseSlice(sequence, sequence.num_output_tokens, 0, sequence.num_output_tokens)
        for sequence in request.sequences
    )
    outputs = REPORTER.outputs(request, spans, is_first=is_first, is_last=is_last)
    for spec, values in outputs:
        assert spec in (*tensors.CORE_PARTS, *tensors.CORE_REPORTS)
        assert values.ndim == len(spec.dims), spec.name
        assert all(dim in (-1, size) for dim, size in zip(spec.dims, values.shape, strict=True)), spec.name
        assert values.dtype.kind == _KINDS[spec.dtype], spec.name
        assert spec.dtype == "STRING" or values.dtype.itemsize * 8 == int(spec.dtype.lstrip("UINTFP")), spec.name
    named = {spec.name: values for spec, values in outputs}
    assert len(named) == len(outputs)
    return named


def test_output_tensors_what_a_last_response_always_says() -> None:
    request = _request(seed=2**64 - 1)
    request.first.num_cached_tokens = 4
    outputs = _outputs(request)
    assert set(outputs) == ALWAYS
    assert {name: values.tolist() for name, values in outputs.items()} == {
        "finish_reason": [b"length"], "stop_reason": [b""], "num_input_tokens": [5], "num_output_tokens": [3],
        "num_cached_tokens": [4], "used_seed": [2**64 - 1], "sequence_length": [3], "batch_index": [0],
        "sequence_index": [0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "more", "less"),
    [
        ({"return_num_input_tokens": False}, set(), {"num_input_tokens"}),
        ({"return_num_output_tokens": False}, set(), {"num_output_tokens"}),
        ({"return_log_probs": True}, {"output_log_probs", "cum_log_probs"}, set()),
        ({"return_prompt_log_probs": True}, {"prompt_log_probs"}, set()),
        ({"num_top_log_probs": 2}, {"output_log_probs", "cum_log_probs", "top_log_probs", "top_log_prob_ids"}, set()),
        (
            {"num_top_log_probs": 2, "return_prompt_log_probs": True},
            {"prompt_log_probs", "prompt_top_log_probs", "prompt_top_log_prob_ids"},
            set(),
        ),
        ({"return_perf_metrics": True}, PERF, set()),
        (
            {"return_log_probs": True, "return_token_bytes": True},
            {"output_log_probs", "cum_log_probs", "output_token_bytes"},
            set(),
        ),
        (
            {"return_prompt_log_probs": True, "return_token_bytes": True},
            {"prompt_log_probs", "prompt_token_bytes"},
            set(),
        ),
    ],
)
def test_output_tensors_what_is_asked_for_is_said(fields: dict[str, Any], more: set[str], less: set[str]) -> None:
    assert set(_outputs(_request(**fields))) == (ALWAYS | more) - less


def test_output_tensors_a_token_of_a_plain_stream_comes_alone() -> None:
    request = _request(stream=True, return_perf_metrics=True, return_prompt_log_probs=True)
    assert _outputs(request, ResponseSlice(request.first, 1, 1, 2), is_last=False) == {}


def test_output_tensors_the_first_response_says_how_long_the_prompt_is() -> None:
    span = ResponseSlice((request := _request(stream=True)).first, 1, 0, 1)
    assert _outputs(request, span, is_first=True, is_last=False) == {"num_input_tokens": [5]}
    assert set(_outputs(request, is_first=True)) == ALWAYS
    request = _request(stream=True, return_num_input_tokens=False)
    assert _outputs(request, span, is_first=True, is_last=False) == {}


def test_output_tensors_streamed_log_probs_are_of_the_tokens_beside_them() -> None:
    request = _request((4,), stream=True, num_top_log_probs=2)
    outputs = _outputs(request, ResponseSlice(request.first, 2, 1, 3), is_last=False)
    assert set(outputs) == {"output_log_probs", "top_log_probs", "top_log_prob_ids"}
    np.testing.assert_array_equal(outputs["output_log_probs"], [[-0.125, -0.25]])
    np.testing.assert_array_equal(outputs["top_log_probs"], [[-0.125, -1.125], [-0.25, -1.25]])
    np.testing.assert_array_equal(outputs["top_log_prob_ids"], [[0, 1], [0, 1]])


def test_output_tensors_sequences_of_different_lengths_are_filled_up_with_zeros() -> None:
    outputs = _outputs(_request((1, 3, 0), num_top_log_probs=1))
    np.testing.assert_array_equal(
        outputs["output_log_probs"], [[0.0, 0.0, 0.0], [-1.0, -1.125, -1.25], [0.0, 0.0, 0.0]]
    )
    assert outputs["top_log_probs"].shape == outputs["top_log_prob_ids"].shape == (4, 1), "one for each output id"
    np.testing.assert_array_equal(outputs["cum_log_probs"], [0, -3.375, 0])
    assert outputs["sequence_index"].tolist() == [0, 1, 2]
    assert outputs["sequence_length"].tolist() == outputs["num_output_tokens"].tolist() == [1, 3, 0]
    assert outputs["finish_reason"].tolist() == [b"length"] * 3


def _spelled(token_id: int, *, begins: bool = False, no_text: Collection[int] = (0,)) -> bytes:
    """The bytes on the wire; token 0 is special."""
    return (b"!" if token_id in no_text else b"") + spell(token_id)[begins:].encode().hex().encode()


@pytest.mark.parametrize("echo", [False, True])
def test_output_tensors_bytes_are_of_the_tokens_that_have_log_probs(echo: bool) -> None:
    asked = {"num_top_log_probs": 2, "return_log_probs": True, "return_prompt_log_probs": True, "echo": echo}
    outputs = _outputs(_request((1, 3), **asked, return_token_bytes=True))
    begins = not echo
    assert outputs["output_token_bytes"].tolist() == [
        [_spelled(0, begins=begins), b"", b""],
        [_spelled(10, begins=begins), _spelled(11), _spelled(12)],
    ]
    first = [[_spelled(0, begins=begins), _spelled(1, begins=begins)]]
    assert outputs["top_token_bytes"].tolist() == [*first, *first, *[[_spelled(0), _spelled(1)]] * 2]
    assert outputs["prompt_token_bytes"].tolist() == [_spelled(1, begins=True), *map(_spelled, (2, 3, 4, 5))]
    assert outputs["prompt_top_token_bytes"].tolist() == [[_spelled(0), _spelled(1)]] * 4


@pytest.mark.parametrize(("skip", "num_first"), [(True, 3), (False, 1)])
def test_output_tensors_bytes_begin_a_text_behind_what_is_no_text(skip: bool, num_first: int) -> None:
    """Token 0 is special, and 90 a marker; the stream comes in pieces. What is no text says so."""
    fields = {"return_log_probs": True, "return_token_bytes": True, "stream": True, "skip_special_tokens": skip}
    request = _request((5,), **fields, marker_ids=[90] if skip else [], num_top_log_probs=1)
    ids = [0, 90, 7, 8, 0]
    request.first.token_ids[5:] = ids
    sent, tops = [], []
    for start, end in ((0, 1), (1, 4), (4, 5)):
        outputs = _outputs(request, ResponseSlice(request.first, end - start, start, end), is_last=False)
        sent += outputs["output_token_bytes"].tolist()[0]
        tops += outputs["top_token_bytes"].tolist()
    no_text = {0, 90} if skip else set()
    assert sent == [_spelled(each, begins=place < num_first, no_text=no_text) for place, each in enumerate(ids)]
    assert tops == [[_spelled(0, begins=place < num_first, no_text=no_text)] for place in range(5)]


def test_output_tensors_many_small_log_probs_are_summed_without_loss() -> None:
    request = _request((1,), return_log_probs=True)
    rng = np.random.default_rng(1)
    values = -np.concatenate([[1e8], rng.random(4000)])
    request.first.log_probs[:] = [TokenLogProbs(float(value)) for value in values]
    assert _outputs(request)["cum_log_probs"][0] == np.float32(values.astype(np.longdouble).sum())


def test_output_tensors_an_echoed_prompt_has_ids_but_no_log_probs() -> None:
    request = _request((2,), echo=True, num_top_log_probs=1)
    outputs = _outputs(request, ResponseSlice(request.first, 7, 0, 2))
    assert outputs["sequence_length"].tolist() == [7]
    assert outputs["output_log_probs"].shape == (1, 2)
    assert outputs["top_log_probs"].shape == (2, 1)


def test_output_tensors_log_probs_of_the_prompt_begin_with_its_second_token() -> None:
    outputs = _outputs(_request((1, 1), num_top_log_probs=3, return_prompt_log_probs=True))
    assert outputs["prompt_log_probs"].tolist() == [0, -1, -2, -3, -4]
    assert outputs["prompt_top_log_probs"].shape == outputs["prompt_top_log_prob_ids"].shape == (4, 3)
    assert outputs["prompt_top_log_probs"][2].tolist() == [-3, -4, -5]


def test_output_tensors_a_prompt_of_one_token_has_a_log_prob_of_nothing() -> None:
    request = _request((1,), input_ids=[7], num_top_log_probs=3, return_prompt_log_probs=True)
    request.first.prompt_log_probs.clear()
    outputs = _outputs(request)
    assert outputs["prompt_log_probs"].tolist() == [0]
    assert outputs["prompt_top_log_probs"].shape == (0, 3)


def test_output_tensors_each_stream_of_a_request_reports_its_own_end() -> None:
    request = _request((2, 3), stream=True, return_prompt_log_probs=True, return_perf_metrics=True)
    first, second = request.sequences
    first.stop_reason, first.finish_reason = "END", FinishReason.STOP
    first.num_cached_tokens, second.num_cached_tokens = 0, 4
    first.first_scheduled_at, second.first_scheduled_at = 101.0, 102.0
    of_first = _outputs(request, ResponseSlice(first, 1, 1, 2))
    of_second = _outputs(request, ResponseSlice(second, 1, 2, 3))
    assert (of_first["stop_reason"].tolist(), of_second["stop_reason"].tolist()) == ([b"END"], [b""])
    assert (of_first["finish_reason"].tolist(), of_second["finish_reason"].tolist()) == ([b"stop"], [b"length"])
    assert (of_first["num_output_tokens"].tolist(), of_second["num_output_tokens"].tolist()) == ([2], [3])
    assert (of_first["sequence_length"].tolist(), of_second["sequence_length"].tolist()) == ([1], [1])
    assert (of_first["sequence_index"].tolist(), of_second["sequence_index"].tolist()) == ([0], [1])
    assert of_second["num_cached_tokens"].tolist() == [0], "of the prompt, which the first one has computed"
    assert of_second["first_scheduled_time_ns"].tolist() == [10**18 + 102 * 10**9]
    assert "prompt_log_probs" in of_first
    assert "prompt_log_probs" not in of_second


def test_output_tensors_times_are_of_the_calendar_and_blocks_of_the_first_sequence() -> None:
    request = _request((6, 2), return_perf_metrics=True)
    first = request.first
    first.first_scheduled_at, first.first_token_at, first.last_token_at = 100.25, 101.5, 102.0
    first.num_cached_tokens = 4
    first.num_draft_tokens, first.num_accepted_tokens = 8, 2
    outputs = {name: values.tolist() for name, values in _outputs(request).items()}
    second_ns = 10**9
    assert outputs["arrival_time_ns"] == [10**18 + 100 * second_ns]
    assert outputs["first_scheduled_time_ns"] == [10**18 + 100 * second_ns + second_ns // 4, 0]
    assert outputs["first_token_time_ns"] == [10**18 + 101 * second_ns + second_ns // 2, 0]
    assert outputs["last_token_time_ns"] == [10**18 + 102 * second_ns, 0]
    assert outputs["kv_cache_reused_blocks"] == [1]
    assert outputs["kv_cache_alloc_total_blocks"] == [3], "eleven tokens, four a block"
    assert outputs["kv_cache_alloc_new_blocks"] == [2]
    assert (outputs["total_draft_tokens"], outputs["total_accepted_draft_tokens"]) == ([8, 0], [2, 0])
    assert outputs["acceptance_rate"] == [0.25, 0]


def test_output_tensors_a_whole_core_reports_what_happened() -> None:
    began = time.time_ns()
    with serving(MockEngine(SPEC)) as service:
        for num_cached in (0, 8):
            client = Client()
            fields = {"input_ids": list(range(11)), "max_tokens": 4, "return_perf_metrics": True, "seed": 3}
            service.submit(fields, client)
            assert client.done.wait(60)
            assert client.outputs["num_cached_tokens"] == [num_cached]
            assert client.outputs["kv_cache_reused_blocks"] == [num_cached // SPEC.block_size]
    outputs = client.outputs
    times = [outputs[f"{name}_time_ns"][0] for name in ("arrival", "first_scheduled", "first_token", "last_token")]
    assert began - 10**7 <= times[0] <= times[1] < times[2] < times[3] <= time.time_ns() + 10**7
    assert outputs["used_seed"] == [3]
