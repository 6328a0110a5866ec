"""Engines on a GPU from the build to the last byte freed; what is refused, and how it is said."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import hardware
from tests.gpu.conftest import Build, engine_folder, loaded
from tests.gpu.steps import mixed_steps
from trident_backend.engine.factory import load_engine
from trident_ensemble.contract.errors import ArtifactError, PlanError
from trident_ensemble.contract.manifest import KVKind, read_manifest

pytestmark = pytest.mark.gpu
#: What CUDA and TensorRT keep for themselves.
SLACK = 64 << 20


def test_loading_the_manifest_names_compiler_and_gpu(repository_of: Build, compiler: str) -> None:
    manifest = read_manifest(engine_folder(repository_of("llama")))
    major, minor = hardware.capability()
    assert manifest.compiler.name == compiler
    assert manifest.compiler.target == f"sm_{major}{minor}"
    assert manifest.compiler.version == hardware.import_compiler(compiler).__version__


def test_loading_an_engine_is_loaded_and_frees_what_it_took(repository_of: Build) -> None:
    free = []
    for _ in range(3):
        with loaded(repository_of("llama")) as engine:
            assert engine.spec.kv_kind is KVKind.SLOTS
            mixed_steps(engine)
        free.append(_free_bytes())
    # The first load leaves CUDA's own context behind.
    assert free[0] - free[-1] < SLACK


def test_loading_too_little_memory_is_refused_with_the_numbers(repository_of: Build) -> None:
    # Slots of 200 MB, several times what is left.
    repository = repository_of("llama", "fp16", None, "--max-num-seqs", "64", "--max-seq-len", "2048")
    with loaded(repository):
        pass
    with _occupied(_free_bytes() - SLACK):
        with pytest.raises(PlanError, match="free memory"):
            load_engine(engine_folder(repository))
    with loaded(repository) as engine:
        mixed_steps(engine)


def test_loading_a_plan_for_another_gpu_is_refused(repository_of: Build, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(engine_folder(repository_of("llama")), folder)
    manifest = json.loads((folder / "engine.json").read_text())
    manifest["compiler"]["target"] = "sm_10"
    (folder / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="built for sm_10"):
        load_engine(folder)


def test_loading_a_gpu_that_is_not_there_is_refused(repository_of: Build) -> None:
    with pytest.raises(ArtifactError, match=f"GPU {hardware.num_gpus()}"):
        load_engine(engine_folder(repository_of("llama")), (hardware.num_gpus(),))


def _runtime() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def _free_bytes() -> int:
    _, free, _ = _runtime().cudaMemGetInfo()
    return int(free)


@contextmanager
def _occupied(num_bytes: int) -> Iterator[None]:
    """So much of the GPU's memory is somebody else's."""
    status, address = _runtime().cudaMalloc(num_bytes)
    assert status == _runtime().cudaError_t.cudaSuccess
    try:
        yield
    finally:
        _runtime().cudaFree(address)
