"""The real tritonserver serves a network that two GPUs share, which are doubles: see tests/tensorrt/double."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from tests.checkpoints import make_checkpoint, reference_model
from tests.e2e.build import build
from tests.e2e.clients import ask_grpc
from tests.e2e.server import Server, serve, until
from tests.tensorrt.double import environment

LIMITS = ("--max-num-seqs", "4", "--max-num-tokens", "32", "--max-seq-len", "128")
TEXTS = ("one prong", "two prongs, and then", "three prongs: the trident", "none")
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("parallel") / "checkpoint", "qwen2", head_dim=64, hidden_size=256)


@pytest.fixture(scope="module", autouse=True)
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The doubles in the places of cuda-python, TensorRT and NCCL, for what is started from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(environment.make(tmp_path_factory.mktemp("python") / "doubles")))
        patch.setenv("DOUBLE_GPUS", "2")
        patch.setenv("DOUBLE_GPU_BYTES", str(8 * 2**30))
        yield


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "parallel"
    build(checkpoint, folder, "--engine", "tensorrt", "--tensor-parallel", "2", "--precision", "fp16", *LIMITS)
    config = folder / "core" / "config.pbtxt"
    # The server sees that there is no GPU, and would not load the model.
    config.write_text(re.sub(r"  gpus: 0\n  kind: KIND_GPU", "  kind: KIND_CPU", config.read_text(encoding="utf-8")))
    return folder


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[Server]:
    with serve(repository, tmp_path / "log") as running:
        yield running


def status(pid: int) -> tuple[str, int] | None:
    """State and parent of a process; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (fields[0], int(fields[1]))


def the_rank(server: Server) -> int:
    """The one process of a rank among the server's descendants."""
    parents = {int(folder.name): status(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    family = {server.process.pid}
    while grown := {pid for pid, found in parents.items() if found and found[1] in family} - family:
        family |= grown
    (rank,) = (pid for pid in family if b"tensorrt.rank_process" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return rank


def generated(checkpoint: Path, text: str) -> list[int]:
    prompt = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids
    tokens = torch.tensor([prompt])
    model = reference_model(checkpoint)
    with torch.no_grad():
        for _ in range(NUM_TOKENS):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in tokens[0, len(prompt) :]]


def test_parallel_two_gpus_answer_as_transformers_does_and_leave_nothing_behind(
    repository: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with serve(repository, tmp_path / "log") as running:
        rank = the_rank(running)
        fields: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "stream": True, "ignore_eos": True}
        with ThreadPoolExecutor(len(TEXTS)) as pool:
            answers = list(pool.map(lambda text: ask_grpc(running.grpc, text_input=text, **fields), TEXTS))
        assert [answer.output_ids for answer in answers] == [generated(checkpoint, text) for text in TEXTS]
    until(lambda: status(rank) is None, 60, "the rank has ended with its server")


def test_parallel_a_killed_rank_is_an_error_to_every_request_and_the_end_of_the_server(server: Server) -> None:
    fields: dict[str, Any] = {"max_tokens": 100, "temperature": 0.0, "stream": True, "ignore_eos": True}
    with ThreadPoolExecutor(6) as pool:
        outcomes = [pool.submit(ask_grpc, server.grpc, text_input=f"request {n}", **fields) for n in range(6)]
        until(lambda: server.num_steps > 5, 60, "tokens are generated")
        os.kill(the_rank(server), signal.SIGKILL)
        errors = [outcome.exception(60) for outcome in outcomes]
    for error in errors:
        assert isinstance(error, InferenceServerException)
        assert re.search(r"\[INTERNAL\] .*; the server's log says why", str(error))
    assert "rank 1 (GPU 1) ended with signal SIGKILL" in server.log.read_text(errors="replace")
    until(lambda: server.process.poll() is not None, 60, "the server ends")


def test_parallel_a_killed_leader_leaves_no_rank(server: Server) -> None:
    rank = the_rank(server)
    found = status(rank)
    assert found is not None
    os.kill(found[1], signal.SIGKILL)
    until(lambda: status(rank) is None, 60, "the rank has ended")
