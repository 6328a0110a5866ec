"""The real tritonserver serves an engine of our own kernels on a GPU that is a double: its answers are OpenVINO's.

The program, its files and the host are those that users get; in place of each cubin is a text that says which kernel it
stands for, and the kernels' twins in numpy run where a GPU would run them. See tests/tensorrt/double.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.cuda.engines import write_doubles
from tests.e2e.build import build
from tests.e2e.clients import Answer, grpc_stream, make_inputs
from tests.e2e.server import Server, serve, until
from tests.e2e.test_tensorrt import LIMITS, MAX_TOKENS, OTHERS, ask, ask_all, checkpoint, doubled, greedy
from trident_compiler.cuda import kernel_compiler
from trident_tools.main import main

__all__ = ["checkpoint", "doubled", "greedy"]

#: The engine has no kernels for GPUs of other kinds, and guesses as an engine on CPUs does.
OPTIONS = (
    "--engine", "cuda", "--compute-capability", "8.9", "--gpu-memory", "1GiB", "--precision", "fp32",
    "--kv-cache", "2048t", "--max-draft-tokens", "3",
)  # fmt: skip
#: Of sums in single precision, in another order.
TOLERANCE = 1e-3
NUM_SEQUENCES = 3


@pytest.fixture(scope="module")
def repository(checkpoint: Path, doubled: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    doubled.setenv("DOUBLE_GPU_BYTES", str(2 * 2**30))
    folder = tmp_path_factory.mktemp("repository") / "cuda"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_compiler, "compile_kernels", write_doubles)
        command = ["build", str(checkpoint), "--repository", str(folder), "--metrics-period-ms", "100", "--quiet"]
        assert main([*command, *OPTIONS, *LIMITS]) == 0
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


@pytest.fixture(scope="module")
def expected(checkpoint: Path, greedy: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """OpenVINO's answers, one at a time: to the greedy requests, then to the others."""
    folder = tmp_path_factory.mktemp("openvino")
    with serve(build(checkpoint, folder / "repository", *LIMITS), folder / "log") as running:
        return [ask(running, fields) for fields in [*greedy, *OTHERS]]


def test_cuda_a_crowd_of_requests_of_all_kinds_gets_openvinos_answers(
    server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    answers = ask_all(server, [*greedy, *OTHERS])
    assert all(answer.num_finals == 1 for answer in answers)
    for found, wanted in zip(answers, expected, strict=True):
        assert (found.output_ids, found.text) == (wanted.output_ids, wanted.text)
        log_probs = found.joined("output_log_probs"), wanted.joined("output_log_probs")
        assert log_probs[0] == pytest.approx(log_probs[1], abs=TOLERANCE)


def test_cuda_sequences_of_one_prompt_share_its_blocks_and_prompts_their_beginning(
    server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    def family(fields: dict[str, Any]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(NUM_SEQUENCES)]
        asked = {"max_tokens": MAX_TOKENS, "stream": True, "num_return_sequences": NUM_SEQUENCES, **fields}
        with grpc_stream(server.grpc, make_inputs(grpcclient, asked)) as results:
            for part in results:
                indices = part.as_numpy("sequence_index").reshape(-1)
                for index, ids in zip(indices, part.as_numpy("output_ids"), strict=True):
                    found[index] += ids.reshape(-1).tolist()
        return found

    reused = {"kv_cache_block_type": "reused"}
    before = server.metric("nv_trt_llm_kv_cache_block_metrics", **reused)
    with ThreadPoolExecutor(len(greedy)) as pool:
        families = list(pool.map(family, greedy))
    assert families == [[answer.output_ids] * NUM_SEQUENCES for answer in expected[: len(greedy)]]
    assert server.metric("nv_trt_llm_kv_cache_block_metrics", **reused) > before


@pytest.mark.parametrize("call", ["cudaGraphLaunch", "cuLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_cuda_a_step_that_fails_is_answered_and_logged_by_name_and_the_next_request_is_served(
    call: str, server: Server, greedy: list[dict[str, Any]], expected: list[Answer]
) -> None:
    faults = server.log.parent / "faults"
    faults.write_text(call, encoding="utf-8")
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*a step of the engine failed") as raised:
        ask(server, greedy[0])
    assert call not in str(raised.value)
    until(lambda: re.search(f"{call} .*failed|{call} failed", server.log.read_text(errors="replace")), 60, "the log")
    assert not faults.exists()
    assert ask(server, greedy[0]).output_ids == expected[0].output_ids
    until(lambda: server.num_active == 0, 60, "all requests have ended")


def test_cuda_a_kernel_that_loses_the_gpu_ends_the_server_after_every_request_was_answered(
    server: Server,
) -> None:
    """It is the last test of this server."""
    (server.log.parent / "faults").write_text("attention.attend 700", encoding="utf-8")
    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(ask, server, fields) for fields in OTHERS[:4]]
        errors = [outcome.exception(60) for outcome in outcomes]
    assert all(isinstance(error, InferenceServerException) for error in errors)
    assert any("a step of the engine failed" in str(error) for error in errors)
    assert "the GPU is lost" in server.log.read_text(errors="replace")
    until(lambda: server.process.poll() is not None, 60, "the server ends")
