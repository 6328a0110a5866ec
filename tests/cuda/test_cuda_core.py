"""The whole core on the engine of our own kernels, on a GPU that is a double: the tests of the core on a CPU, as they
are, and random histories whose tokens are those of the CPU's engine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backend.engine.conftest import BuildAndLoad
from tests.backend.engine.conftest import build as build_openvino
from tests.backend.engine.test_core import (
    Smaller,
    expected,
    prompts,
    test_core_scheduling_never_changes_the_output,
    test_core_siblings_share_a_prompt_and_nothing_else,
)
from tests.checkpoints import make_checkpoint
from tests.cuda.engines import build, load
from tests.fakes.core import Clock, make_sequence
from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.core import EngineCore
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import Engine
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_ensemble.contract.errors import CancelledError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

__all__ = [
    "expected",
    "prompts",
    "test_core_scheduling_never_changes_the_output",
    "test_core_siblings_share_a_prompt_and_nothing_else",
]

#: Four sequences of the longest find room, and no fifth.
NUM_BLOCKS = 14
#: Of steps with CUDA graphs: others run launch by launch.
SIZES = (1, 2, 4, 8, 16, 48)
NUM_STEPS, NUM_SEEDS = 90, 2
TEXTS = ([7, 30, 12, 90] * 15, [50, 50, 8] * 20, [int(i * i % 389) + 4 for i in range(70)])
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"log_probs": True, "num_top_log_probs": 3},
    {"temperature": 0.8},
    {"temperature": 0.9, "top_k": 5, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_p": 0.6, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"temperature": 1.1, "min_p": 0.1, "logit_bias": ((9, 2.0), (8, -100.0))},
    {"prompt_log_probs": True, "log_probs": True},
)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """The doubles; at the end nothing may be left on the GPU."""
    with installed():
        yield
        assert GPUS.leaks() == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer layers than there: a launch takes longer here than all of a layer does on a CPU."""
    return make_checkpoint(tmp_path_factory.mktemp("core") / "llama", "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def engine_of(
    machine: None,  # noqa: ARG001 (the doubles come first and go last)
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BuildAndLoad]:
    """Loads the engine of a checkpoint, which is built once; an engine holds no state between the tests."""
    loaded: dict[Path, Engine] = {}

    def of(folder: Path) -> Engine:
        if folder not in loaded:
            built = build(folder, tmp_path_factory.mktemp("cuda") / "1", max_num_seqs=16, max_num_tokens=128)
            loaded[folder] = load(built, captured=SIZES)
        return loaded[folder]

    yield of
    for engine in loaded.values():
        engine.close()


@pytest.fixture(scope="module")
def openvino(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(build_openvino(checkpoint, tmp_path_factory.mktemp("openvino") / "1"))[0]


def play(engine: Engine, seed: int) -> list[tuple[list[int], list[float]]]:
    """Return the output and the log probabilities of all sequences of a history.

    Requests come, some with siblings, are aborted, paused and resumed; prompts begin alike. What happens when does not
    depend on the tokens, except where guesses are accepted.
    """
    draw = random.Random(seed)  # noqa: S311
    settings = CoreSettings(
        batch_scheduler_policy=draw.choice(list(BatchSchedulerPolicy)),
        token_budget=draw.choice([0, 40]),
        max_draft_tokens=draw.choice([0, 3]),
    )
    clock = Clock()
    limits = replace(engine.spec, num_blocks=NUM_BLOCKS, max_num_seqs=8, max_num_tokens=128)
    core = EngineCore(Smaller(engine, limits.num_blocks), settings, clock)
    sequences: list[Sequence] = []

    def add() -> None:
        prompt = draw.choice(TEXTS)[: draw.randint(1, 60)] + [draw.randrange(4, 400) for _ in range(draw.randint(1, 9))]
        sampling = SamplingParams(seed=draw.randrange(99), **draw.choice(SAMPLINGS))
        parent = None
        for index in range(draw.choice([1, 1, 1, 3])):
            own = replace(sampling, index=index, prompt_log_probs=sampling.prompt_log_probs and not index)
            sequence = make_sequence(len(sequences), prompt, draw.randint(1, 40), sampling=own, parent=parent)
            sequence.reuse_cache &= not own.prompt_log_probs
            sequences.append(sequence)
            core.scheduler.add(sequence, clock.now)
            parent = parent or sequence

    for number in range(NUM_STEPS):
        if draw.random() < 0.25:
            add()
        if sequences and draw.random() < 0.05:
            core.scheduler.finish(draw.choice(sequences), FinishReason.CANCELLED, CancelledError("a test's choice"))
        if sequences and draw.random() < 0.2:
            chosen = draw.choice(sequences)
            chosen.paused = not chosen.paused
        clock.now += 0.01 * (1 + number % 3)
        assert core.step().error is None
        core.kv_cache.check_integrity(core.scheduler.running)
    for sequence in sequences:
        sequence.paused = False
    while core.scheduler.waiting or core.scheduler.running:
        assert core.step().error is None
    assert core.kv_cache.num_used == 0
    return [(s.token_ids[s.num_prompt_tokens :], _log_probs(s)) for s in sequences]


def _log_probs(sequence: Sequence) -> list[float]:
    return [float(each.log_prob) for each in (*sequence.prompt_log_probs, *sequence.log_probs)]


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_cuda_core_random_histories_have_the_tokens_of_the_engine_on_cpus(
    seed: int, checkpoint: Path, engine_of: BuildAndLoad, openvino: Engine
) -> None:
    found, wanted = play(engine_of(checkpoint), seed), play(openvino, seed)
    assert [ids for ids, _ in found] == [ids for ids, _ in wanted]
    for (_, log_probs), (_, others) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(log_probs, others, rtol=0, atol=1e-3)
    assert sum(len(log_probs) for _, log_probs in wanted) > 0
