"""Two GPUs that share a network, each served by a process of its own: the whole host, on doubles."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backend.doubles import Client
from tests.backend.serving import make_service
from tests.checkpoints import make_checkpoint, reference_model
from tests.tensorrt.double import communicators
from tests.tensorrt.double.engines import Limit, build, installed
from tests.tensorrt.double.gpu import GPUS
from tests.tensorrt.test_host import pack, rows_of
from tests.tensorrt.test_parallel_ranks import children, gone
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import StepBatch
from trident_ensemble.errors import ArtifactError, EngineLostError

_ROOT = Path(__file__).parents[2]
_DOUBLES = _ROOT / "tests" / "tensorrt" / "double"
NUM_RANKS = 2


class Sequence:
    """A sequence in its slot; see `test_host.pack`."""

    def __init__(self, tokens: list[int], slot: int) -> None:
        self.tokens = tokens
        self.slot = slot
        self.num_computed = 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "qwen3", "qwen3", head_dim=64)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "1"
    build(checkpoint, folder, Limit(num_devices=NUM_RANKS))
    return folder


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The doubles here and in the other processes; nothing may be left, neither memory nor processes."""
    monkeypatch.syspath_prepend(str(_ROOT))
    monkeypatch.syspath_prepend(str(_DOUBLES))
    monkeypatch.setenv("DOUBLE_GPUS", str(NUM_RANKS))
    monkeypatch.setitem(sys.modules, "nccl.core", communicators)
    with installed():
        yield
        assert GPUS.leaks() == []
    assert gone(lambda: children(os.getpid()) == set())


def generate(engine: Any, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Greedy, the prompts in chunks of mixed sizes and all sequences side by side."""
    sequences = [Sequence(list(prompt), 2 * number) for number, prompt in enumerate(prompts)]
    chunk = 5
    while any(one.num_computed < len(prompt) + num_tokens for one, prompt in zip(sequences, prompts, strict=True)):
        chunks = [(one, min(chunk, len(one.tokens) - one.num_computed)) for one in sequences]
        ends = np.cumsum([count for _, count in chunks]) - 1
        logits = engine.execute(pack(chunks, wanted=ends.tolist()))  # type: ignore[arg-type]
        likeliest, _ = logits.likeliest(np.arange(len(chunks)))
        for (one, count), token in zip(chunks, likeliest.tolist(), strict=True):
            one.num_computed += count
            if one.num_computed == len(one.tokens):
                one.tokens.append(token)
        chunk = 1 + chunk * 3 % 7
    return [one.tokens[len(prompt) :][:num_tokens] for one, prompt in zip(sequences, prompts, strict=True)]


def expected(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(num_tokens):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in tokens[0, len(prompt) :]]


def a_step() -> StepBatch:
    return pack([(Sequence([1, 2, 3], 0), 3)])  # type: ignore[list-item]


def test_two_gpus_generate_what_transformers_does(folder: Path, checkpoint: Path) -> None:
    prompts = [[5, 17, 60, 33, 200, 7, 91], [18, 44], [9] * 11]
    engine, manifest = load_engine(folder)
    try:
        assert manifest.tensor_parallel == NUM_RANKS
        assert len(children(os.getpid())) == NUM_RANKS - 1
        tokens = generate(engine, prompts, 8)
    finally:
        engine.close()
    model = reference_model(checkpoint)
    assert tokens == [expected(model, prompt, 8) for prompt in prompts]


def test_slots_are_copied_on_every_gpu(folder: Path) -> None:
    engine, _ = load_engine(folder)
    try:
        prefix = Sequence([5, 17, 60, 33, 200, 7], 0)
        engine.execute(pack([(prefix, 6)]))  # type: ignore[list-item]
        own, borrowed = Sequence([*prefix.tokens, 8, 9], 0), Sequence([*prefix.tokens, 8, 9], 3)
        own.num_computed = borrowed.num_computed = 6
        logits = rows_of(engine.execute(pack([(own, 2), (borrowed, 2)], copies=[(0, 3, 6)])))  # type: ignore[list-item]
        np.testing.assert_allclose(logits[:2], logits[2:], atol=1e-5)
    finally:
        engine.close()


def test_a_rank_killed_in_the_middle_of_a_step_ends_the_step(folder: Path) -> None:
    engine, _ = load_engine(folder)
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGSTOP)  # the leader now waits in a collective for good
    failures: list[BaseException] = []

    def execute() -> None:
        try:
            engine.execute(a_step())
        except EngineLostError as error:
            failures.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    os.kill(pid, signal.SIGKILL)
    thread.join(10)
    assert "rank 1 (GPU 1) ended with signal SIGKILL" in str(failures[0])
    with pytest.raises(EngineLostError, match="SIGKILL"):
        engine.execute(a_step())
    engine.close()


def test_a_rank_killed_while_serving_is_an_error_to_everybody_and_fatal(folder: Path) -> None:
    engine, _ = load_engine(folder)
    died: list[BaseException] = []
    service = make_service(engine, on_fatal=died.append)
    clients = [Client() for _ in range(9)]  # more than run at a time
    for number, client in enumerate(clients):
        service.submit({"input_ids": [3 + number, 4], "max_tokens": 50, "stream": True}, client)
    assert gone(lambda: any(client.chunks for client in clients))
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGKILL)
    assert gone(lambda: bool(died))
    assert isinstance(died[0], EngineLostError)
    for client in clients:
        assert client.done.wait(5)
        assert client.num_finals == 1
        assert "rank 1 (GPU 1) ended with signal SIGKILL" in str(client.errors[0])
    engine.close()


def test_a_gpu_that_fails_in_one_rank_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_GPUS", "1")
    GPUS.num_devices = NUM_RANKS  # the other process sees fewer than the leader
    with pytest.raises(EngineLostError, match=r"rank 1 \(GPU 1\): GPU 1 cannot be used: .*cudaSetDevice"):
        load_engine(folder)


def test_the_leaders_own_gpu_may_be_missing(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="GPU 7 cannot be used"):
        load_engine(folder, (7, 1))


def test_the_number_of_gpus_is_the_manifests(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tensor_parallel: .* 2 GPUs, not 1"):
        load_engine(folder, (0,))
