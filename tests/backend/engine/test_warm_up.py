"""The first steps of an engine: within its limits, and before any request."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.engine.conftest import BuildAndLoad
from tests.backend.engine.driver import DrivenSequence, Driver
from tests.checkpoints import make_checkpoint
from trident_backend.engine.mock import MockEngine
from trident_backend.engine.openvino import engine as openvino_engine
from trident_backend.engine.protocol import Engine, EngineSpec
from trident_backend.engine.warm_up import warm_up
from trident_ensemble.contract.manifest import KVKind


@st.composite
def specs(draw: st.DrawFn) -> EngineSpec:
    kind = draw(st.sampled_from(KVKind))
    block_size, num_blocks = draw(st.sampled_from([1, 8, 32])), draw(st.integers(1, 40))
    max_num_seqs = draw(st.integers(1, 20))
    held = num_blocks * block_size if kind is KVKind.BLOCKS else block_size
    return EngineSpec(
        vocab_size=50,
        max_num_seqs=max_num_seqs,
        max_num_tokens=max_num_seqs + draw(st.integers(0, 80)),
        max_seq_len=min(draw(st.integers(1, 200)), held),
        block_size=block_size,
        num_blocks=num_blocks,
        kv_kind=kind,
    )


@settings(max_examples=60, deadline=None)
@given(specs())
def test_warm_up_keeps_to_the_limits_of_any_engine(spec: EngineSpec) -> None:
    """The mock engine asserts that a step is within its limits, and its cache has no block beyond the last."""
    engine = MockEngine(spec)
    warm_up(engine)
    assert engine.num_steps == 3


def test_warm_up_is_done_once_an_engine_is_loaded_and_changes_no_later_step(
    tmp_path: Path, engine_of: BuildAndLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama")
    warmed: list[Engine] = []

    def remember(engine: Engine) -> None:
        warm_up(engine)
        warmed.append(engine)

    monkeypatch.setattr(openvino_engine, "warm_up", remember)
    warm = engine_of(checkpoint)
    assert warmed == [warm]
    monkeypatch.setattr(openvino_engine, "warm_up", lambda _engine: None)
    cold = engine_of(checkpoint)
    ids = [int(token) for token in np.random.default_rng(3).integers(4, 400, 40)]
    logits, seconds = [], []
    for engine in (cold, warm):
        began = time.perf_counter()
        logits.append(Driver(engine).step([(DrivenSequence(list(ids)), len(ids))])[0])
        seconds.append(time.perf_counter() - began)
    assert np.array_equal(logits[0], logits[1])
    print(f"first step {seconds[0] * 1e3:.1f} ms cold, {seconds[1] * 1e3:.1f} ms warm")
