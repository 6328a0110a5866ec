"""The host refuses what does not match its manifest, naming the field; its logits are the sampler's to write to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backend.engine.conftest import BuildAndLoad, build
from tests.backend.engine.driver import DrivenSequence, Driver, whole
from tests.backend.sampling.test_sampling_reference import next_row, sequence_of
from tests.checkpoints import make_checkpoint
from trident_backend.engine.factory import load_engine
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import execute
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequences.sampling_params import SamplingParams
from trident_ensemble.contract.errors import ArtifactError, EngineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1), tmp_path / "engine")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("kv_cache", "kind", "slots"),
        ("kv_cache", "block_size", 16),
        ("kv_cache", "block_bytes", 1),
        ("architecture", "num_layers", 2),
        ("architecture", "vocab_size", 401),
        ("precision", "compute", "fp4"),
        ("precision", "kv_cache", "fp4"),
        ("compiler", "name", "abacus"),
    ],
)
def test_host_a_manifest_that_lies_is_refused(folder: Path, section: str, field: str, value: Any) -> None:
    manifest = json.loads((folder / "engine.json").read_text())
    manifest[section][field] = value
    (folder / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=rf"{section}\.{field}\b.*\b{value}\b"):
        load_engine(folder)


def test_host_another_network_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "engine.json").read_text())
    text = (folder / "network.xml").read_text().replace("trident_attention", "something_else")
    (folder / "network.xml").write_text(text)
    with pytest.raises(ArtifactError, match=r"network\.xml"):
        load_engine(folder)
    del manifest["digests"]["network.xml"]
    (folder / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="attention"):
        load_engine(folder)


def test_host_a_failed_step_is_an_engine_error(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1))
    driver = Driver(engine)
    batch = driver.batch([(DrivenSequence([5, 6, 7]), 3)])
    object.__setattr__(batch, "token_ids", batch.token_ids.reshape(1, 3))
    with pytest.raises(EngineError, match="1 sequences"):
        execute(engine, batch)
    assert driver.whole([5, 6, 7]).shape == (3, 400)


def test_host_logits_may_be_written_to_and_the_next_step_writes_them_anew(
    tmp_path: Path, engine_of: BuildAndLoad
) -> None:
    """The sampler penalises and bans in place, in the network's own output."""
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1))
    driver = Driver(engine)
    logits = execute(engine, driver.batch([(DrivenSequence([5, 6, 7]), 3)]))
    assert isinstance(logits, HostLogits)
    before = logits.array.copy()
    assert logits.array.flags.c_contiguous
    logits.array[:] = float("-inf")
    np.testing.assert_array_equal(driver.whole([5, 6, 7]), before)


def test_host_sampling_on_the_networks_own_logits_is_that_on_a_copy(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1))
    driver = Driver(engine)
    params = [
        SamplingParams(),
        SamplingParams(1.0, top_k=20, repetition_penalty=1.5),
        SamplingParams(1.0, top_p=0.8, bad_words=((7,),)),
        SamplingParams(1.0, min_p=0.1, log_probs=True, num_top_log_probs=3),
    ]
    vocab_size = engine.spec.vocab_size
    rows = [next_row(sequence_of(each, [5, 6, 7, 8])) for each in params]
    logits = execute(engine, driver.batch([(DrivenSequence([5, 6, 7, 8]), 4)]))
    copied = HostLogits(whole(logits), NumpyKernels())
    expected = Sampler(vocab_size).choose(copied, rows)
    choices = Sampler(vocab_size).choose(logits, rows)
    assert choices.token_ids == expected.token_ids
    assert choices.log_probs[3].top_ids == expected.log_probs[3].top_ids
    assert choices.log_probs[3].log_prob == pytest.approx(expected.log_probs[3].log_prob, abs=1e-5)
