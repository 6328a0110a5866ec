"""The core's shell: tensors to fields and chunks to responses, with Triton's module doubled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ensemble.contract.test_manifest import MANIFEST
from tests.fakes import triton as fake_triton
from tests.fakes.core import SPEC, expected_tokens
from tests.fakes.engine import HeldEngine
from tests.fakes.serving import until
from tests.tokenizer_zoo import byte_level_bpe
from trident_backend.engine.mock import MockEngine
from trident_ensemble.contract import layout
from trident_ensemble.contract import tensors as contract
from trident_ensemble.contract.chunk_header import VERSION
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.manifest import Generation

Shell = fake_triton.load_shell("trident_backend")


def _arguments(folder: Path, *, instances: int = 1, **parameters: str) -> dict[str, str]:
    config = {
        "instance_group": [{"count": instances}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    return {
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": "core",
        "model_config": json.dumps(config),
    }


@pytest.fixture
def unfinished_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """To be finalized by the test, which may name an engine and the period of its metrics."""
    engine, period_ms = getattr(request, "param", (MockEngine(SPEC), "50"))
    (tmp_path / "1").mkdir()
    np.save(tmp_path / "1" / layout.TOKEN_TABLE_FILE, np.ones(SPEC.vocab_size, np.uint8))
    (tmp_path / "1" / layout.TOKENIZER_FOLDER).mkdir()
    byte_level_bpe().save(str(tmp_path / "1" / layout.TOKENIZER_FOLDER / "tokenizer.json"))
    generation = Generation(end_ids=(2, 3), temperature=0.7, top_k=20, top_p=0.8)
    manifest = replace(MANIFEST, generation=generation)
    monkeypatch.setattr("trident_backend.triton_model.load_engine", lambda _folder, _gpus: (engine, manifest))
    model = Shell()
    model.initialize(_arguments(tmp_path, metrics_period_ms=period_ms))
    return model


@pytest.fixture
def shell(unfinished_shell: Any) -> Iterator[Any]:
    yield unfinished_shell
    unfinished_shell.finalize()


_DTYPES = {spec.name: spec.dtype for spec in contract.CORE_INPUTS}
_NUMPY = {"STRING": np.object_, "BOOL": np.bool_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}


def _request(
    parameters: dict[str, Any] | None = None, request_id: str = "", **fields: Any
) -> fake_triton.InferenceRequest:
    tensors = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        tensors.append(fake_triton.Tensor(name, np.array([values], _NUMPY[_DTYPES.get(name, "INT32")])))
    return fake_triton.InferenceRequest(tensors, request_id, parameters)


def _answered(request: fake_triton.InferenceRequest) -> list[fake_triton.InferenceResponse]:
    deadline = time.monotonic() + 60
    while not request.sender.is_closed:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return request.sender.responses


def _output(response: fake_triton.InferenceResponse, name: str) -> Any:
    tensor = fake_triton.get_output_tensor_by_name(response, name)
    assert tensor is not None
    return tensor.as_numpy()


def test_triton_model_one_response_with_every_output(shell: Any) -> None:
    request = _request(input_ids=[5, 6, 7], max_tokens=9, ignore_eos=True, temperature=0.0)
    assert shell.execute([request]) is None
    (response,) = _answered(request)
    assert _output(response, "output_ids").tolist() == [[expected_tokens([5, 6, 7], 9)]]
    assert _output(response, "output_ids").dtype == np.int32
    assert _output(response, "chunk").tolist() == [[VERSION, 0, 0, 0, 0, 1, 1, 0, 0, 9, 0, -1]]
    assert _output(response, "finish_reason").tolist() == [[b"length"]]
    assert (_output(response, "num_input_tokens"), _output(response, "num_output_tokens")) == ([[3]], [[9]])


def test_triton_model_a_stream_ends_with_its_final_flag(shell: Any) -> None:
    request = _request(input_ids=[5], max_tokens=20, ignore_eos=True, temperature=0.0, stream=True)
    shell.execute([request])
    responses = _answered(request)
    ids = [token_id for response in responses for token_id in _output(response, "output_ids")[0, 0].tolist()]
    assert ids == expected_tokens([5], 20)
    names = [{tensor.name() for tensor in response.output_tensors()} for response in responses]
    assert names[0] == {"output_ids", "chunk", "num_input_tokens"}
    assert all(sent == {"output_ids", "chunk"} for sent in names[1:-1])
    assert {"finish_reason", "num_input_tokens", "num_output_tokens"} <= names[-1]


def test_triton_model_every_output_has_the_shape_and_type_of_the_contract(shell: Any) -> None:
    asked = _request(
        input_ids=[5, 6], max_tokens=7, ignore_eos=True, return_log_probs=True, return_prompt_log_probs=True,
        num_top_log_probs=2, return_token_bytes=True, return_perf_metrics=True, num_return_sequences=3, temperature=0.0,
    )  # fmt: skip
    shell.execute([asked])
    (response,) = _answered(asked)
    sent = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    assert set(sent) == {spec.name for spec in contract.CORE_OUTPUTS}
    for spec in contract.CORE_OUTPUTS:
        array = sent[spec.name]
        assert array.dtype == {**_NUMPY, "INT64": np.int64}[spec.dtype], spec.name
        assert len(array.shape) == 1 + len(spec.dims)
        assert all(dim in (-1, size) for dim, size in zip((1, *spec.dims), array.shape, strict=True)), spec.name


def test_triton_model_every_input_of_the_contract_is_taken(shell: Any) -> None:
    """With tensorrtllm_backend's defaults where it has any."""
    fields: dict[str, Any] = {
        "max_tokens": 5, "min_tokens": 2, "min_length": 2, "stream": False, "stream_interval_ms": 0,
        "num_return_sequences": 1, "temperature": 0.0, "top_k": 1, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "logit_bias": b'{"3": 0.5}', "seed": 2**64 - 1, "beam_width": 1,
        "length_penalty": 1.0, "stop_words": [b""], "stop_token_ids": [90], "include_stop_str_in_output": False,
        "end_id": 2, "pad_id": 2, "ignore_eos": True, "skip_special_tokens": True, "echo": False,
        "exclude_input_in_output": True, "guided_decoding_guide_type": b"", "guided_decoding_guide": b"",
        "return_log_probs": False, "return_prompt_log_probs": False, "num_top_log_probs": 0,
        "return_token_bytes": False, "marker_ids": [3],
        "return_perf_metrics": False, "return_num_input_tokens": True, "return_num_output_tokens": True,
        "return_context_logits": False, "return_generation_logits": False, "priority": 0, "tenant": b"",
        "timeout_ms": 60_000, "cache_salt": b"", "reuse_cache": True, "stop": False, "flow_control": False,
        "input_ids": [5], "input_lengths": 1, "request_output_len": 5, "streaming": False, "runtime_top_k": 1,
        "runtime_top_p": 1.0, "len_penalty": 1.0, "random_seed": 2**64 - 1,
    }  # fmt: skip
    request = _request(**fields)
    request.inputs().append(fake_triton.Tensor("bad_words_list", np.array([[[-1], [-1]]], np.int32)))
    assert {tensor.name() for tensor in request.inputs()} == {spec.name for spec in contract.CORE_INPUTS}
    shell.execute([request])
    (response,) = _answered(request)
    assert not response.has_error()
    assert _output(response, "num_output_tokens").tolist() == [[5]]


def test_triton_model_a_stop_string_ends_the_output_where_its_text_does(shell: Any) -> None:
    tokenizer = byte_level_bpe()
    output = expected_tokens([5], 20)
    text = tokenizer.decode(output, skip_special_tokens=True)
    word = next(text[place : place + 2] for place in range(6, 20) if text[place : place + 2].isascii())
    request = _request(input_ids=[5], max_tokens=20, ignore_eos=True, temperature=0.0, stop_words=[word.encode()])
    shell.execute([request])
    (response,) = _answered(request)
    assert _output(response, "finish_reason").tolist() == [[b"stop"]]
    assert _output(response, "stop_reason").tolist() == [[word.encode()]]
    assert _output(response, "chunk").tolist()[0][-1] == text.index(word)


def test_triton_model_a_request_is_stopped_by_its_id(shell: Any) -> None:
    endless = _request(request_id="7", input_ids=[5], max_tokens=50, ignore_eos=True, stream=True)
    stop = _request(request_id="7", input_ids=[0], stop=True)
    nameless = _request(input_ids=[0], stop=True)
    shell.execute([endless, stop, nameless])
    assert _output(_answered(endless)[-1], "finish_reason").tolist() == [[b"cancelled"]]
    (answer,) = _answered(stop)
    assert {tensor.name() for tensor in answer.output_tensors()} == {"output_ids", "chunk", "finish_reason"}
    assert _output(answer, "output_ids").shape == (1, 1, 0)
    error = _answered(nameless)[0].error()
    assert error is not None
    assert "stop: needs the request id" in error.message()


def test_triton_model_a_guide_that_is_none_is_refused(shell: Any) -> None:
    request = _request(
        input_ids=[5], max_tokens=9, guided_decoding_guide_type=b"regex", guided_decoding_guide=b"x{1001}(",
    )  # fmt: skip
    shell.execute([request])
    error = _answered(request)[0].error()
    assert error is not None
    assert "[INVALID_ARG] invalid_guide: guided_decoding_guide: " in error.message()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_request(input_ids=[5], max_tokens=-2), "max_tokens"),
        (_request(max_tokens=4), "input_ids"),
        (_request(input_ids=[999], max_tokens=4), "input_ids"),
        (_request(input_ids=[1] * 100_000, max_tokens=4), "input_ids"),
        (_request(input_ids=[5], max_tokens=[4, 4]), "max_tokens"),
        (_request({"max_tokns": 4}, input_ids=[5], max_tokens=4), "max_tokns"),
        (_request(input_ids=[5], max_tokens=4, max_tokns=4), "max_tokns"),
        (fake_triton.InferenceRequest([fake_triton.Tensor("max_tokens", np.array([[4.0]]))]), "max_tokens"),
        (fake_triton.InferenceRequest([fake_triton.Tensor("stop_words", np.array([[4]]))]), "stop_words"),
    ],
)
def test_triton_model_each_bad_request_of_a_batch_gets_its_own_error(
    shell: Any, request_: fake_triton.InferenceRequest, field: str
) -> None:
    good = _request(input_ids=[5], max_tokens=4, ignore_eos=True, temperature=0.0)
    shell.execute([request_, good])
    (refused,) = _answered(request_)
    error = refused.error()
    assert error is not None
    assert error.code() == fake_triton.TritonError.INVALID_ARG
    assert f"[INVALID_ARG] {field}: " in error.message()
    assert _output(_answered(good)[-1], "output_ids").tolist() == [[expected_tokens([5], 4)]]


def test_triton_model_a_cancelled_client_gets_its_final_flag_and_is_not_asked_again(shell: Any) -> None:
    request = _request(input_ids=[5], max_tokens=40, ignore_eos=True, stream=True)
    request.sender.client_left = True
    shell.execute([request])
    _answered(request)
    time.sleep(0.25)  # longer than the period of asking; the double fails on a question after the final flag


def test_triton_model_an_engine_is_hosted_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="instance_group"):
        Shell().initialize(_arguments(tmp_path, instances=2))


def test_triton_model_an_unknown_parameter_fails_the_load_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_queue_sise"):
        Shell().initialize(_arguments(tmp_path, max_queue_sise="4"))


def _metric(family: str, **labels: str) -> fake_triton.Metric:
    wanted = {"model": "core", "version": "1", **labels}
    return fake_triton.MetricFamily.alive[family].metrics[frozenset(wanted.items())]


def test_triton_model_metrics_are_of_triton_s_kinds_and_the_last_ones_are_published_at_the_end(
    unfinished_shell: Any,
) -> None:
    request = _request(input_ids=[5, 6, 7], max_tokens=9, ignore_eos=True, temperature=0.0)
    endless = _request(input_ids=[5], max_tokens=60, ignore_eos=True)
    unfinished_shell.execute([_request(input_ids=[5], max_tokens=[4, 4]), _request(input_ids=[5], max_tokens=-2)])
    unfinished_shell.execute([request])
    _answered(request)
    unfinished_shell.execute([endless])
    unfinished_shell.finalize()
    ends = {end: _metric("nv_llm_requests_total", finish_reason=end).number for end in ("length", "cancelled")}
    assert _metric("nv_llm_requests_total", finish_reason="refused").number == 2, "one unread, one unserved"
    assert ends["length"] >= 1
    assert sum(ends.values()) == 2
    lengths = _metric("nv_llm_output_token_len")
    assert lengths.buckets == [10, 50, 100, 500, 1000]
    assert lengths.observed == [9], "one that was cut short says nothing about lengths"
    assert _metric("nv_llm_output_tokens_total").number >= 9
    num_steps = _metric("nv_trt_llm_general_metrics", general_type="iteration_counter").number
    assert num_steps >= 9
    assert _metric("nv_llm_step_tokens_bucket", le="+Inf").number == num_steps
    assert _metric("nv_trt_llm_request_metrics", request_type="active").number == 0


HELD = HeldEngine(SPEC, 2)


@pytest.mark.parametrize("unfinished_shell", [(HELD, "60000")], indirect=True)
def test_triton_model_open_requests_are_shown_at_once_however_seldom_metrics_are(unfinished_shell: Any) -> None:
    """`trident serve` drains by this gauge."""
    request = _request(input_ids=[5], max_tokens=60, ignore_eos=True)
    try:
        unfinished_shell.execute([request])
        until(lambda: _metric("nv_trt_llm_request_metrics", request_type="active").number == 1)
        assert _metric("nv_trt_llm_general_metrics", general_type="iteration_counter").number == 0
        HELD.release()
        _answered(request)
        until(lambda: _metric("nv_trt_llm_request_metrics", request_type="active").number == 0)
    finally:
        HELD.release()
        unfinished_shell.finalize()


def test_triton_model_metrics_that_fail_are_given_up_and_harm_nobody(
    unfinished_shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []
    monkeypatch.setattr(fake_triton.Metric, "refuses", True)
    monkeypatch.setattr(fake_triton.Logger, "log_error", failures.append)
    for _ in range(2):
        request = _request(input_ids=[5], max_tokens=9, ignore_eos=True, temperature=0.0)
        unfinished_shell.execute([request])
        assert _output(_answered(request)[-1], "output_ids").tolist() == [[expected_tokens([5], 9)]]
        time.sleep(0.1)  # longer than the period of the metrics
    unfinished_shell.finalize()
    (failure,) = failures
    assert "metrics are no longer published" in failure
