"""The manifest: written, read back, and refused by name when anything is off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trident_ensemble.contract.digests import digest_folder, verify_files
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Compiler,
    Generation,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    PrecisionChoice,
    PrecisionTrial,
    read_manifest,
    write_manifest,
)

MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    architecture=Architecture("llama", 2, 97),
    limits=Limits(4, 16, 64),
    precision=Precision(
        "bf16", "int8", "u8", PrecisionChoice("1.5 times as fast", "A CPU", (PrecisionTrial("fp32", 3.0, 1.5),))
    ),
    kv_cache=KVLayout(32, 10, 4096),
    compiler=Compiler("openvino", "2026.4.1"),
    generation=Generation((2, 3), 0.7, 20, 0.8, 0.1, 1.1, 2, ((4,), (5, 6)), ("\nUser:",)),
    digests={},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "network.xml").write_text("<net/>")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    write_manifest(tmp_path, replace(MANIFEST, digests=digest_folder(tmp_path)))
    return tmp_path


def test_manifest_what_is_written_is_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert replace(manifest, digests={}) == MANIFEST
    assert sorted(manifest.digests) == ["network.xml", "tokenizer/tokenizer.json"]
    verify_files(folder, manifest)


def test_manifest_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="trident build"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: raw.update(format_version=FORMAT_VERSION - 1), "format_version"),
        (lambda raw: raw.update(surprise=1), "engine.surprise"),
        (lambda raw: raw["limits"].pop("max_seq_len"), "engine.limits.max_seq_len"),
        (lambda raw: raw["limits"].update(max_seq_len="64"), "engine.limits.max_seq_len"),
        (lambda raw: raw["limits"].update(max_seq_len=True), "engine.limits.max_seq_len"),
        (lambda raw: raw["kv_cache"].update(num_blocks=-1), "engine.kv_cache.num_blocks"),
        (lambda raw: raw["kv_cache"].update(kind="pages"), "engine.kv_cache.kind: 'pages' is not one of blocks, slots"),
        (lambda raw: raw["kv_cache"].update(kind=[]), r"engine.kv_cache.kind: \[\] is not one of blocks, slots"),
        (lambda raw: raw["generation"].update(end_ids=[1, "2"]), "engine.generation.end_ids"),
        (lambda raw: raw["generation"].update(bad_words=[[1], 2]), r"engine.generation.bad_words\[1\]"),
        (lambda raw: raw["generation"].update(stop_strings=[7]), r"engine.generation.stop_strings\[0\]"),
        (lambda raw: raw.update(digests=[]), "engine.digests"),
        (lambda raw: raw.update(precision=7), "engine.precision"),
        (lambda raw: raw["precision"]["choice"].pop("cpu"), "engine.precision.choice.cpu"),
        (lambda raw: raw["precision"]["choice"].update(trials=[7]), r"engine.precision.choice.trials\[0\]"),
        (lambda raw: raw["limits"].update(max_num_tokens=3), "max_num_tokens: 3 is less than max_num_seqs 4"),
        (lambda raw: raw["kv_cache"].update(num_blocks=1), "num_blocks: the cache holds 32 tokens, max_seq_len is 64"),
        (lambda raw: raw["limits"].update(max_num_seqs=0), "at least 1"),
    ],
)
def test_manifest_a_bad_field_is_named(folder: Path, change: Callable[[dict[str, Any]], object], field: str) -> None:
    path = folder / "engine.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=field):
        read_manifest(folder)


def test_manifest_changed_missing_and_escaping_files_are_named(folder: Path) -> None:
    manifest = read_manifest(folder)
    with pytest.raises(ArtifactError, match="leads out"):
        verify_files(folder, replace(manifest, digests={"../secret": "0"}))
    (folder / "network.xml").write_text("<other/>")
    with pytest.raises(ArtifactError, match=r"network\.xml.*changed"):
        verify_files(folder, manifest)
    (folder / "network.xml").unlink()
    with pytest.raises(ArtifactError, match=r"network\.xml.*missing"):
        verify_files(folder, manifest)
