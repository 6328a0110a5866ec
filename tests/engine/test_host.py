"""The host refuses what does not match its manifest, naming the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint
from tests.engine.conftest import BuildAndLoad, build
from tests.engine.driver import DrivenSequence, Driver
from trident_backend.engine.factory import load_engine
from trident_ensemble.errors import ArtifactError, EngineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1), tmp_path / "engine")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("kv_cache", "block_size", 16),
        ("kv_cache", "block_bytes", 1),
        ("architecture", "num_layers", 2),
        ("architecture", "vocab_size", 401),
        ("precision", "compute", "fp4"),
        ("precision", "kv_cache", "fp4"),
        ("compiler", "name", "abacus"),
    ],
)
def test_a_manifest_that_lies_is_refused(folder: Path, section: str, field: str, value: Any) -> None:
    manifest = json.loads((folder / "engine.json").read_text())
    manifest[section][field] = value
    (folder / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=rf"{section}\.{field}"):
        load_engine(folder)


def test_another_network_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "engine.json").read_text())
    text = (folder / "network.xml").read_text().replace("trident_attention", "something_else")
    (folder / "network.xml").write_text(text)
    with pytest.raises(ArtifactError, match=r"network\.xml"):
        load_engine(folder)
    del manifest["digests"]["network.xml"]
    (folder / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="attention"):
        load_engine(folder)


def test_a_failed_step_is_an_engine_error(tmp_path: Path, engine_of: BuildAndLoad) -> None:
    engine = engine_of(make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1))
    driver = Driver(engine)
    batch = driver.batch([(DrivenSequence([5, 6, 7]), 3)])
    object.__setattr__(batch, "token_ids", batch.token_ids.reshape(1, 3))
    with pytest.raises(EngineError, match="1 sequences"):
        engine.execute(batch)
    assert driver.whole([5, 6, 7]).shape == (3, 400)
