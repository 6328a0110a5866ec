"""Two GPUs that share a network, each served by a process of its own: the whole host, on doubles."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import make_checkpoint, reference_model
from tests.fakes.core import Client
from tests.fakes.serving import make_service
from tests.tensorrt.double import communicators, faults
from tests.tensorrt.double.engines import Limit, build, installed
from tests.tensorrt.double.gpu import GPUS
from tests.tensorrt.rank_processes import LIMIT_S, Call, limited, no_ranks_left, pids, ranks_of, until
from tests.tensorrt.test_host import pack, rows_of
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import StepBatch, execute
from trident_backend.engine.tensorrt.parallel import ParallelEngine
from trident_ensemble.contract.errors import ArtifactError, EngineError, EngineLostError

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
    """The doubles here and in the other processes; no process may be left."""
    monkeypatch.syspath_prepend(str(_ROOT))
    monkeypatch.syspath_prepend(str(_DOUBLES))
    monkeypatch.setenv("DOUBLE_GPUS", str(NUM_RANKS))
    monkeypatch.setitem(sys.modules, "nccl.core", communicators)
    with installed(), no_ranks_left():
        yield


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """All memory is free again: not so where a GPU still waits for a rank that is gone."""
    yield
    assert GPUS.leaks() == []


@contextmanager
def loaded(folder: Path, gpus: tuple[int, ...] = ()) -> Iterator[ParallelEngine]:
    """An engine that is closed whatever happens, in a limited time."""
    before = threading.enumerate()
    engine, _ = limited(lambda: load_engine(folder, gpus))
    assert isinstance(engine, ParallelEngine)
    try:
        yield engine
    finally:
        if not engine._ranks._is_over:  # the test has not closed it
            limited(engine.close)
        # What the end of the process does to a GPU that waits for a rank that is gone.
        engine._communicator._communicator.abort()
        for thread in set(threading.enumerate()).difference(before):
            if thread.name == "trident-leader-gpu":
                thread.join(LIMIT_S)
                assert not thread.is_alive()


def generate(engine: Any, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Greedy, the prompts in chunks of mixed sizes and all sequences side by side."""
    sequences = [Sequence(list(prompt), 2 * number) for number, prompt in enumerate(prompts)]
    chunk = 5
    while any(one.num_computed < len(prompt) + num_tokens for one, prompt in zip(sequences, prompts, strict=True)):
        chunks = [(one, min(chunk, len(one.tokens) - one.num_computed)) for one in sequences]
        ends = np.cumsum([count for _, count in chunks]) - 1
        logits = execute(engine, pack(chunks, wanted=ends.tolist()))  # type: ignore[arg-type]
        tokens, _ = logits.argmax(np.arange(len(chunks)))
        for (one, count), token in zip(chunks, tokens.tolist(), strict=True):
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


@pytest.mark.parametrize("gpus", [(), (1, 0)])
@pytest.mark.usefixtures("nothing_leaks")
def test_parallel_host_two_gpus_generate_what_transformers_does(
    gpus: tuple[int, ...], folder: Path, checkpoint: Path
) -> None:
    prompts = [[5, 17, 60, 33, 200, 7, 91], [18, 44], [9] * 11]
    with loaded(folder, gpus) as engine:
        assert ranks_of(os.getpid()) >= set(pids(engine))
        assert len(pids(engine)) == NUM_RANKS - 1
        tokens = limited(lambda: generate(engine, prompts, 8))
    model = reference_model(checkpoint)
    assert tokens == [expected(model, prompt, 8) for prompt in prompts]


@pytest.mark.usefixtures("nothing_leaks")
def test_parallel_host_slots_are_copied_on_every_gpu(folder: Path) -> None:
    with loaded(folder) as engine:
        prefix = Sequence([5, 17, 60, 33, 200, 7], 0)
        limited(lambda: execute(engine, pack([(prefix, 6)])))  # type: ignore[list-item]
        own, borrowed = Sequence([*prefix.tokens, 8, 9], 0), Sequence([*prefix.tokens, 8, 9], 3)
        own.num_computed = borrowed.num_computed = 6
        both = pack([(own, 2), (borrowed, 2)], copies=[(0, 3, 6)])  # type: ignore[list-item]
        logits = limited(lambda: rows_of(execute(engine, both)))
        np.testing.assert_allclose(logits[:2], logits[2:], atol=1e-5)


def test_parallel_host_a_rank_killed_in_the_middle_of_a_step_ends_the_step(folder: Path) -> None:
    with loaded(folder) as engine:
        (pid,) = pids(engine)
        os.kill(pid, signal.SIGSTOP)  # the leader now waits in a collective for good
        waiting = Call(lambda: execute(engine, a_step()))
        time.sleep(0.5)
        assert waiting.is_running()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineLostError, match=r"rank 1 \(GPU 1\) ended with signal SIGKILL"):
            waiting.outcome()
        with pytest.raises(EngineLostError, match="SIGKILL"):
            limited(lambda: execute(engine, a_step()))
        limited(engine.close)  # though the GPU still waits


def test_parallel_host_a_rank_killed_while_serving_is_an_error_to_everybody_and_fatal(folder: Path) -> None:
    with loaded(folder) as engine:
        died: list[BaseException] = []
        service = make_service(engine, on_fatal=died.append)
        clients = [Client() for _ in range(9)]  # more than run at a time
        for number, client in enumerate(clients):
            service.submit({"input_ids": [3 + number, 4], "max_tokens": 50, "stream": True}, client)
        assert until(lambda: any(client.chunks for client in clients))
        os.kill(pids(engine)[0], signal.SIGKILL)
        assert until(lambda: bool(died))
        assert isinstance(died[0], EngineLostError)
        assert "rank 1 (GPU 1) ended with signal SIGKILL" in str(died[0])
        for client in clients:
            assert client.done.wait(60)
            assert client.num_finals == 1
            assert str(client.errors[0]).endswith("; the server's log says why")
        limited(service.stop)


def test_parallel_host_a_rank_killed_in_closing_does_not_hold_up_the_leader(folder: Path) -> None:
    with loaded(folder) as engine:
        (pid,) = pids(engine)
        os.kill(pid, signal.SIGSTOP)
        closing = Call(engine.close)
        time.sleep(0.5)
        assert closing.is_running()
        os.kill(pid, signal.SIGKILL)
        closing.outcome()


@pytest.mark.parametrize("fault", ["is_stream_capturable", "cudaStreamBeginCapture", "a captured stream"])
def test_parallel_host_a_graph_that_one_rank_cannot_capture_ends_the_loading(fault: str, folder: Path) -> None:
    faults.order(fault)  # on the leader's GPU alone
    with pytest.raises(EngineError, match="no CUDA graph for 6 sequences, where all GPUs need one"):
        limited(lambda: load_engine(folder))


def test_parallel_host_how_many_graphs_were_captured_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), loaded(folder):
        assert re.search(r"captured 4 CUDA graphs in \d+\.\d s", caplog.text)  # of 1, 2, 4 and 6 sequences


def test_parallel_host_a_gpu_that_fails_in_one_rank_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_GPUS", "1")
    GPUS.num_devices = NUM_RANKS  # the other process sees fewer than the leader
    with pytest.raises(EngineLostError, match=r"rank 1 \(GPU 1\): GPU 1 cannot be used: .*cudaSetDevice"):
        limited(lambda: load_engine(folder))


@pytest.mark.usefixtures("nothing_leaks")
def test_parallel_host_the_leaders_own_gpu_may_be_missing(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="GPU 7 cannot be used"):
        limited(lambda: load_engine(folder, (7, 1)))


def test_parallel_host_the_number_of_gpus_is_the_manifests(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tensor_parallel: .* 2 GPUs, not 1"):
        load_engine(folder, (0,))
