"""The real tritonserver serves an engine of TensorRT's on a GPU that is a double: its answers are OpenVINO's.

The networks are the compiler's, recorded where TensorRT would compile them and interpreted in float16 where a GPU would
run them; memory, streams and graphs are the double's. See tests/tensorrt/double.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from tritonclient.utils import InferenceServerException

from tests.checkpoints import make_checkpoint, reference_model
from tests.e2e.build import build
from tests.e2e.clients import Answer, ask_grpc
from tests.e2e.server import Server, serve, until
from tests.tensorrt.double import environment

LIMITS = ("--max-num-seqs", "12", "--max-num-tokens", "64", "--max-seq-len", "256")
MAX_TOKENS = 12
#: Of two logits that float16 cannot take for each other: its largest error here is a quarter of it.
CLEAR = 0.02
SYSTEM = "you are a trident with three prongs and you answer in the order in which you are asked and never twice "
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen")
NUM_GREEDY = 4
#: In a draw among hundreds of tokens float16 decides one in twenty differently, and what follows is another text.
OTHERS: list[dict[str, Any]] = [
    *({"text_input": f"seed {seed}", "temperature": 0.8, "seed": seed} for seed in range(5)),
    {"text_input": "top k", "temperature": 0.7, "top_k": 5, "seed": 7},
    {"text_input": "top p", "temperature": 0.9, "top_p": 0.7, "seed": 8},
    {"text_input": "min p", "temperature": 0.9, "min_p": 0.2, "seed": 9},
    {"text_input": "penalties", "temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
    {"text_input": "never end", "temperature": 0.0, "ignore_eos": True},
]
#: Of their tokens, up to the first that differs; with another seed or other options less than a twentieth is common.
LEAST_COMMON = 0.5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads as large as a slot's alignment asks for."""
    return make_checkpoint(tmp_path_factory.mktemp("tensorrt") / "checkpoint", "llama", head_dim=64)


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """The doubles in the place of cuda-python and TensorRT, for what is started from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(environment.make(tmp_path_factory.mktemp("python") / "doubles")))
        yield patch


@pytest.fixture(scope="module")
def repository(checkpoint: Path, doubled: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    doubled.setenv("DOUBLE_GPU_BYTES", str(8 * 2**30))
    folder = tmp_path_factory.mktemp("repository") / "tensorrt"
    build(checkpoint, folder, "--engine", "tensorrt", "--precision", "fp16", *LIMITS)
    config = folder / "core" / "config.pbtxt"
    # The server sees that there is no GPU, and would not load the model.
    config.write_text(re.sub(r"  gpus: 0\n  kind: KIND_GPU", "  kind: KIND_CPU", config.read_text(encoding="utf-8")))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, doubled: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It, and a file `faults` beside its log that orders failures."""
    folder = tmp_path_factory.mktemp("server")
    doubled.setenv("DOUBLE_FAULTS", str(folder / "faults"))
    with serve(repository, folder / "log") as running:
        yield running


def ask(server: Server, fields: dict[str, Any]) -> Answer:
    return ask_grpc(server.grpc, **{"max_tokens": MAX_TOKENS, "stream": True, **fields})


def num_common(ids: list[int], others: list[int]) -> int:
    """Tokens before the first that differs."""
    equal = [one == other for one, other in zip(ids, others, strict=False)]
    return [*equal, False].index(False)


def ask_all(server: Server, requests: list[dict[str, Any]]) -> list[Answer]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda fields: ask(server, fields), requests))


@pytest.fixture(scope="module")
def greedy(checkpoint: Path) -> list[dict[str, Any]]:
    """Requests that share a long beginning, and whose tokens are all clear, as transformers sees them."""
    model, tokenizer = reference_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for word in WORDS:
        ids = tokenizer(SYSTEM + word, return_tensors="pt").input_ids
        made = model.generate(
            ids, max_new_tokens=MAX_TOKENS, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        gaps = [float(-scores[0].topk(2).values.diff()) for scores in made.scores]
        if min(gaps) > CLEAR:
            found.append({"text_input": SYSTEM + word, "temperature": 0.0, "return_log_probs": True})
    assert len(found) >= NUM_GREEDY
    return found[:NUM_GREEDY]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, greedy: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """OpenVINO's answers, in single precision, one at a time: to the greedy requests, then to the others."""
    folder = tmp_path_factory.mktemp("openvino")
    with serve(build(checkpoint, folder / "repository", "--engine", "openvino", *LIMITS), folder / "log") as running:
        return [ask(running, fields) for fields in [*greedy, *OTHERS]]


def test_tensorrt_a_crowd_of_requests_of_all_kinds_gets_openvinos_tokens(
    server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    answers = ask_all(server, [*greedy, *OTHERS])
    assert all(answer.num_finals == 1 for answer in answers)
    for found, wanted in zip(answers[:NUM_GREEDY], expected[:NUM_GREEDY], strict=True):
        assert (found.output_ids, found.text) == (wanted.output_ids, wanted.text)
    shares = [
        num_common(found.output_ids, wanted.output_ids) / len(wanted.output_ids)
        for found, wanted in zip(answers[NUM_GREEDY:], expected[NUM_GREEDY:], strict=True)
    ]
    assert sum(shares) / len(shares) > LEAST_COMMON, shares


def test_tensorrt_streams_with_a_shared_prefix_find_it_in_the_slots(
    server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    before = server.metric("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="reused")
    for _ in range(2):
        answers = ask_all(server, greedy)
        assert [answer.output_ids for answer in answers] == [answer.output_ids for answer in expected[:NUM_GREEDY]]
    assert server.metric("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="reused") > before


def test_tensorrt_log_probs_come_from_the_devices_logits(
    server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    found = ask(server, greedy[0]).joined("output_log_probs")
    assert found == pytest.approx(expected[0].joined("output_log_probs"), abs=CLEAR)


@pytest.mark.parametrize("call", ["cudaGraphLaunch", "execute_async_v3", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_tensorrt_a_step_that_fails_is_answered_and_logged_by_name_and_the_next_request_is_served(
    call: str, server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    faults = server.log.parent / "faults"
    faults.write_text(call, encoding="utf-8")
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*a step of the engine failed") as raised:
        ask(server, greedy[0])
    assert call not in str(raised.value)
    until(lambda: f"{call} failed" in server.log.read_text(errors="replace"), 60, "the log says why")
    assert not faults.exists()
    assert ask(server, greedy[0]).output_ids == expected[0].output_ids
    until(lambda: server.num_active == 0, 60, "all requests have ended")


def test_tensorrt_a_lost_gpu_ends_the_server_after_every_request_was_answered(
    repository: Path, doubled: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    doubled.setenv("DOUBLE_FAULTS", str(tmp_path / "faults"))
    with serve(repository, tmp_path / "log") as running:
        ask(running, OTHERS[0])
        (tmp_path / "faults").write_text("cudaStreamSynchronize 700", encoding="utf-8")
        with ThreadPoolExecutor(4) as pool:
            outcomes = [pool.submit(ask, running, fields) for fields in OTHERS[:4]]
            errors = [outcome.exception(60) for outcome in outcomes]
        assert all(isinstance(error, InferenceServerException) for error in errors)
        assert any("a step of the engine failed" in str(error) for error in errors)
        assert "the GPU is lost" in running.log.read_text(errors="replace")
        until(lambda: running.process.poll() is not None, 60, "the server ends")
