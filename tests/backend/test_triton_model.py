"""The core's shell: tensors to fields and chunks to responses, with Triton's module doubled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import fake_triton
from tests.backend.doubles import SPEC, expected_tokens
from tests.backend.test_artifact import MANIFEST
from trident_backend.engine.mock import MockEngine
from trident_ensemble import layout
from trident_ensemble.errors import ConfigError

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
def unfinished_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """To be finalized by the test."""
    (tmp_path / "1").mkdir()
    np.save(tmp_path / "1" / layout.TOKEN_TABLE_FILE, np.ones(SPEC.vocab_size, np.uint8))
    monkeypatch.setattr("trident_backend.triton_model.load_engine", lambda _: (MockEngine(SPEC), MANIFEST))
    model = Shell()
    model.initialize(_arguments(tmp_path))
    return model


@pytest.fixture
def shell(unfinished_shell: Any) -> Iterator[Any]:
    yield unfinished_shell
    unfinished_shell.finalize()


def _request(parameters: dict[str, Any] | None = None, **fields: Any) -> fake_triton.InferenceRequest:
    dtypes = {"stream": np.bool_, "ignore_eos": np.bool_, "temperature": np.float32, "seed": np.uint64}
    tensors = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        tensors.append(fake_triton.Tensor(name, np.array([values], dtypes.get(name, np.int32))))
    return fake_triton.InferenceRequest(tensors, parameters=parameters)


def _answered(request: fake_triton.InferenceRequest) -> list[fake_triton.InferenceResponse]:
    deadline = time.monotonic() + 5
    while not request.sender.is_closed:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return request.sender.responses


def _output(response: fake_triton.InferenceResponse, name: str) -> Any:
    tensor = fake_triton.get_output_tensor_by_name(response, name)
    assert tensor is not None
    return tensor.as_numpy()


def test_one_response_with_every_output(shell: Any) -> None:
    request = _request(input_ids=[5, 6, 7], max_tokens=9, ignore_eos=True, temperature=0.0)
    assert shell.execute([request]) is None
    (response,) = _answered(request)
    assert _output(response, "output_ids").tolist() == [expected_tokens([5, 6, 7], 9)]
    assert _output(response, "output_ids").dtype == np.int32
    assert _output(response, "context_ids").shape == (1, 0)
    assert _output(response, "chunk").tolist() == [[0, 0, 0, 1]]
    assert _output(response, "finish_reason").tolist() == [[b"length"]]
    assert (_output(response, "num_input_tokens"), _output(response, "num_output_tokens")) == ([[3]], [[9]])


def test_a_stream_ends_with_its_final_flag(shell: Any) -> None:
    request = _request(input_ids=[5], max_tokens=20, ignore_eos=True, temperature=0.0, stream=True)
    shell.execute([request])
    responses = _answered(request)
    ids = [token_id for response in responses for token_id in _output(response, "output_ids")[0].tolist()]
    assert ids == expected_tokens([5], 20)
    names = [{tensor.name() for tensor in response.output_tensors()} for response in responses]
    reports = {"finish_reason", "num_input_tokens", "num_output_tokens"}
    assert not any(reports & sent for sent in names[:-1])
    assert reports <= names[-1]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_request(input_ids=[5]), "max_tokens"),
        (_request(input_ids=[5], max_tokens=0), "max_tokens"),
        (_request(max_tokens=4), "input_ids"),
        (_request(input_ids=[999], max_tokens=4), "input_ids"),
        (_request(input_ids=[1] * 100_000, max_tokens=4), "input_ids"),
        (_request(input_ids=[5], max_tokens=[4, 4]), "max_tokens"),
        (_request({"max_tokns": 4}, input_ids=[5], max_tokens=4), "max_tokns"),
    ],
)
def test_each_bad_request_of_a_batch_gets_its_own_error(
    shell: Any, request_: fake_triton.InferenceRequest, field: str
) -> None:
    good = _request(input_ids=[5], max_tokens=4, ignore_eos=True, temperature=0.0)
    shell.execute([request_, good])
    (refused,) = _answered(request_)
    error = refused.error()
    assert error is not None
    assert error.code() == fake_triton.TritonError.INVALID_ARG
    assert f"[INVALID_ARG] {field}: " in error.message()
    assert _output(_answered(good)[-1], "output_ids").tolist() == [expected_tokens([5], 4)]


def test_a_cancelled_client_gets_its_final_flag_and_is_not_asked_again(shell: Any) -> None:
    request = _request(input_ids=[5], max_tokens=40, ignore_eos=True, stream=True)
    request.sender.client_left = True
    shell.execute([request])
    _answered(request)
    time.sleep(0.25)  # longer than the period of asking; the double fails on a question after the final flag


def test_an_engine_is_hosted_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="instance_group"):
        Shell().initialize(_arguments(tmp_path, instances=2))


def test_an_unknown_parameter_fails_the_load_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_queue_sise"):
        Shell().initialize(_arguments(tmp_path, max_queue_sise="4"))


def _metric(family: str, **labels: str) -> fake_triton.Metric:
    wanted = {"model": "core", "version": "1", **labels}
    return fake_triton.MetricFamily.alive[family].metrics[frozenset(wanted.items())]


def test_metrics_are_of_triton_s_kinds_and_the_last_ones_are_published_at_the_end(unfinished_shell: Any) -> None:
    request = _request(input_ids=[5, 6, 7], max_tokens=9, ignore_eos=True, temperature=0.0)
    endless = _request(input_ids=[5], max_tokens=60, ignore_eos=True)
    unfinished_shell.execute([request])
    _answered(request)
    unfinished_shell.execute([endless])
    unfinished_shell.finalize()
    ends = {end: _metric("nv_llm_requests_total", finish_reason=end).number for end in ("length", "cancelled")}
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


def test_metrics_that_fail_are_given_up_and_harm_nobody(unfinished_shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    monkeypatch.setattr(fake_triton.Metric, "refuses", True)
    monkeypatch.setattr(fake_triton.Logger, "log_error", failures.append)
    for _ in range(2):
        request = _request(input_ids=[5], max_tokens=9, ignore_eos=True, temperature=0.0)
        unfinished_shell.execute([request])
        assert _output(_answered(request)[-1], "output_ids").tolist() == [expected_tokens([5], 9)]
        time.sleep(0.6)  # longer than the period of the sums
    unfinished_shell.finalize()
    (failure,) = failures
    assert "metrics are no longer published" in failure
