"""The whole core on the compiled engine: however it is scheduled, greedy output is what transformers generates."""

from __future__ import annotations

import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backend.engine.conftest import BuildAndLoad
from tests.checkpoints import make_checkpoint, reference_model
from tests.fakes.core import SPEC
from trident_backend.core import EngineCore
from trident_backend.engine.mock import MockEngine
from trident_backend.engine.protocol import Engine, EngineSpec, StepBatch, StepLogits
from trident_backend.sequences.ngram_drafter import NgramDrafter
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

NUM_PROMPTS = 14
MAX_TOKENS = 80
#: Two full blocks and a bit: what the prompts have in common.
PREFIX_LEN = 70


@dataclass
class Smaller:
    """An engine of which fewer blocks may be used."""

    engine: Engine
    num_blocks: int

    @property
    def spec(self) -> EngineSpec:
        return replace(self.engine.spec, num_blocks=self.num_blocks)

    def submit(self, batch: StepBatch) -> None:
        self.engine.submit(batch)

    def collect(self) -> StepLogits:
        return self.engine.collect()

    def close(self) -> None:
        self.engine.close()


@dataclass
class Guesser(NgramDrafter):
    """Guesses what is known to come, but for every fifth place, where it is wrong."""

    continuation: list[int]
    num_prompt_tokens: int
    acceptance: float = 0.9

    def propose(self, token_ids: Rows[int], num_tokens: int) -> list[int]:
        start = len(token_ids) - self.num_prompt_tokens
        places = range(start, min(start + num_tokens, len(self.continuation)))
        return [self.continuation[place] ^ (place % 5 == 4) for place in places]

    def index(self, token_ids: Rows[int], num_ngrams: int) -> int:
        return 0

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        """It knows better."""

    def close(self) -> None:
        """It has nothing to give back."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("core") / "llama", "llama")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of different lengths that begin alike."""
    rng = np.random.default_rng(11)
    prefix = rng.integers(4, 400, PREFIX_LEN).tolist()
    return [[*prefix, *rng.integers(4, 400, 2 * index).tolist()] for index in range(1, NUM_PROMPTS + 1)]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = reference_model(checkpoint)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        generated = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None
        )
        outputs.append(generated[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize("policy", BatchSchedulerPolicy)
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("max_draft_tokens", [0, 4])
def test_core_scheduling_never_changes_the_output(  # noqa: PLR0917
    policy: BatchSchedulerPolicy,
    reuse: bool,
    max_draft_tokens: int,
    checkpoint: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    engine_of: BuildAndLoad,
) -> None:
    engine = Smaller(engine_of(checkpoint), num_blocks=18)
    settings = CoreSettings(
        batch_scheduler_policy=policy, enable_kv_cache_reuse=reuse, max_draft_tokens=max_draft_tokens, token_budget=96
    )
    core = EngineCore(engine, settings, time.monotonic)
    sequences = [
        Sequence(index, list(prompt), len(prompt), MAX_TOKENS, SamplingParams(), frozenset(), arrived_at=float(index))
        for index, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        core.scheduler.add(sequence, sequence.arrived_at)
        if max_draft_tokens:
            sequence.drafter = Guesser(expected[sequence.sequence_id], sequence.num_prompt_tokens)
    while core.scheduler.waiting or core.scheduler.running:
        core.step()
        core.kv_cache.check_integrity(core.scheduler.running)
    assert [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in sequences] == expected
    num_preemptions = sum(sequence.num_preemptions for sequence in sequences)
    assert (num_preemptions > 0) == (policy is BatchSchedulerPolicy.MAX_UTILIZATION)
    assert (core.kv_cache.num_reused > 0) == reuse
    if max_draft_tokens:
        num_accepted = sum(sequence.num_accepted_tokens for sequence in sequences)
        assert 0 < num_accepted < sum(sequence.num_draft_tokens for sequence in sequences)
    assert core.kv_cache.num_used == 0


def test_core_a_core_refuses_draft_tokens_that_its_engine_cannot_verify_together() -> None:
    engine = MockEngine(replace(SPEC, supports_draft_tokens=False))
    with pytest.raises(ConfigError, match=r"max_draft_tokens: must be 0, not 3"):
        EngineCore(engine, CoreSettings(max_draft_tokens=3), time.monotonic)
    EngineCore(engine, CoreSettings(), time.monotonic).close()


@pytest.mark.parametrize("reuse", [True, False])
def test_core_siblings_share_a_prompt_and_nothing_else(
    reuse: bool, checkpoint: Path, prompts: list[list[int]], expected: list[list[int]], engine_of: BuildAndLoad
) -> None:
    """Some join when their parent has written further into the block that they share, or has gone."""
    core = EngineCore(engine_of(checkpoint), CoreSettings(enable_kv_cache_reuse=reuse), time.monotonic)
    plain = SamplingParams(), frozenset[int]()
    families = [
        [Sequence(4 * index + i, list(prompts[index]), len(prompts[index]), MAX_TOKENS, *plain) for i in range(4)]
        for index in (0, 6, 13)
    ]
    for first, *others in families:
        for sibling in others:
            sibling.parent, sibling.paused = first, sibling is not others[0]
        for sequence in (first, *others):
            core.scheduler.add(sequence, 0.0)
    num_copies = 0
    for number in range(4 * MAX_TOKENS):
        for first, _, second, third in families:
            second.paused &= number < MAX_TOKENS // 2
            third.paused &= first.finish_reason is None
        num_copies += len(core.step().output.block_copies)
        core.kv_cache.check_integrity(core.scheduler.running)
    for index, family in zip((0, 6, 13), families, strict=True):
        outputs = [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in family]
        assert outputs == [expected[index]] * 4
        num_shared = family[0].num_prompt_tokens - 1
        assert [sequence.num_cached_tokens for sequence in family[1:]] == [num_shared] * 3
    assert num_copies == 9
