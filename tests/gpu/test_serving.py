"""The whole deployment on GPUs: tritonserver, an engine by TensorRT, real clients."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.backend.engine.conftest import reference_logits
from tests.backend.engine.driver import Driver
from tests.checkpoints import reference_model
from tests.e2e.build import build
from tests.e2e.clients import Answer, ask_grpc
from tests.e2e.server import Server, serve
from tests.e2e.test_parity import WORDS
from tests.gpu import hardware
from tests.gpu.conftest import Build, engine_folder
from tests.gpu.steps import assert_likeliest
from trident_backend.engine.factory import load_engine
from trident_ensemble.contract.errors import ServerError
from trident_tools.server.triton_server import find_server

pytestmark = pytest.mark.gpu
CheckpointOf = Callable[[str], Path]
MAX_TOKENS = 24
#: Of half precision, in logits of these checkpoints, whose standard deviation is about 1.6.
TOLERANCE = 0.1


def prompts(num_prompts: int = 12) -> list[str]:
    """Texts of very different lengths, half of which begin alike."""
    rng = random.Random(5)  # noqa: S311 (a test's choice)
    shared = " ".join(rng.choices(WORDS, k=40))
    texts = [" ".join(rng.choices(WORDS, k=1 + 5 * index)) for index in range(num_prompts)]
    return [f"{shared} {text}" if index % 2 else text for index, text in enumerate(texts)]


@contextmanager
def served(repository: Path, log: Path, gpus: str = "0") -> Iterator[Server]:
    """A real tritonserver with the core on these GPUs."""
    try:
        find_server()
    except ServerError as error:
        pytest.skip(str(error))
    with serve(repository, log, "--gpu", gpus) as server:
        yield server


def ask_all(server: Server, texts: list[str]) -> list[Answer]:
    """All at once, greedy."""

    def ask(text: str) -> Answer:
        return ask_grpc(server.grpc, text_input=text, max_tokens=MAX_TOKENS, stream=True, temperature=0.0)

    with ThreadPoolExecutor(len(texts)) as pool:
        return list(pool.map(ask, texts))


def assert_greedy(checkpoint: Path, texts: list[str], answers: list[Answer]) -> None:
    """Every answer is one that transformers could have given."""
    model = reference_model(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer.encode(text).ids
        assert answer.num_finals == 1
        assert answer.num_input_tokens == len(ids)
        assert_likeliest(reference_logits(model, ids + answer.output_ids), len(ids), answer.output_ids, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_serving_answers_are_those_of_transformers(
    family: str, checkpoint_of: CheckpointOf, repository_of: Build, tmp_path: Path
) -> None:
    with served(repository_of(family), tmp_path / "log") as server:
        together = ask_all(server, prompts())
        alone = [ask_all(server, [text])[0] for text in prompts()]
    assert_greedy(checkpoint_of(family), prompts(), together)
    assert_greedy(checkpoint_of(family), prompts(), alone)


def test_serving_answers_are_those_of_the_engine_for_cpus(
    checkpoint_of: CheckpointOf, repository_of: Build, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    checkpoint = checkpoint_of("llama")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with served(repository_of("llama"), tmp_path / "log") as server:
        answers = ask_all(server, prompts())
    on_cpu, _ = load_engine(engine_folder(build(checkpoint, tmp_path / "cpu", "--engine", "openvino")))
    for text, answer in zip(prompts(), answers, strict=True):
        ids = tokenizer.encode(text).ids
        logits = Driver(on_cpu).whole(ids + answer.output_ids)
        assert_likeliest(logits, len(ids), answer.output_ids, TOLERANCE)


def test_serving_a_seed_gives_the_same_answer_again(repository_of: Build, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_tokens": MAX_TOKENS, "stream": True, "temperature": 0.8, "top_p": 0.9, "seed": 11}
    with served(repository_of("llama"), tmp_path / "log") as server:
        one, other = (ask_grpc(server.grpc, text_input="the quick brown", **fields) for _ in range(2))
    assert one.output_ids == other.output_ids


def test_serving_two_gpus_answer_as_one(checkpoint_of: CheckpointOf, repository_of: Build, tmp_path: Path) -> None:
    if hardware.num_gpus() < 2:
        pytest.skip(f"tensor parallel needs 2 GPUs, this machine has {hardware.num_gpus()}")
    repository = repository_of("llama", "fp16", None, "--tensor-parallel", "2", "--gpu", "0,1")
    with served(repository, tmp_path / "log", "0,1") as server:
        answers = ask_all(server, prompts())
    assert_greedy(checkpoint_of("llama"), prompts(), answers)
