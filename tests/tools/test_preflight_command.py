"""`trident preflight` says in one line what is wrong, and the checks are those of `trident serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes.manifests import write_small_manifest
from trident_compiler.planning.machine import Machine
from trident_compiler.tensorrt.gpu import Gpu, Gpus
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.manifest import (
    Compiler,
    KVLayout,
    Manifest,
    Precision,
    read_manifest,
    write_manifest,
)
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools.building import memory_use, preflight
from trident_tools.main import main


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in render_repository(RepositorySettings(1, 1), ModelCard("served", 0, 64)).items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    engine = tmp_path / "repository" / "core" / "1"
    engine.mkdir()
    write_small_manifest(engine, 64)
    (engine / "network.bin").write_bytes(b"weights")
    change(tmp_path / "repository", digests=digest_folder(engine))
    return tmp_path / "repository"


def change(repository: Path, **fields: Any) -> None:
    engine = repository / "core" / "1"
    write_manifest(engine, Manifest(**{**vars(read_manifest(engine)), **fields}))


def complaint(repository: Path, capsys: pytest.CaptureFixture[str], command: str = "preflight", *options: str) -> str:
    assert main([command, "--repository", str(repository), *options]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"trident {command}: ")
    assert text.count("\n") == 1
    return text


def test_preflight_is_content_with_a_whole_repository(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--repository", str(repository)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ready to be served"
    assert main(["preflight", "--repository", str(repository), "--quiet", "--no-server"]) == 0
    assert capsys.readouterr().out == ""


def test_preflight_names_a_damaged_file(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "core" / "1" / "network.bin").write_bytes(b"weightz")
    assert "digests.network.bin: the file has changed" in complaint(repository, capsys)
    (repository / "core" / "1" / "network.bin").unlink()
    assert "digests.network.bin: the file is missing" in complaint(repository, capsys)


def test_preflight_gives_the_numbers_where_memory_is_short(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(repository, kv_cache=KVLayout(64, 1 << 20, 1 << 20))
    monkeypatch.setattr(memory_use, "this_machine", lambda: Machine(3 << 30, "test"))
    text = complaint(repository, capsys)
    assert "1.00 TiB" in text or "1024.00 GiB" in text
    assert "3.00 GiB" in text


def _on(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int], why: str = "") -> None:
    gpus = Gpus(tuple(Gpu(ordinal, capability) for ordinal, capability in enumerate(capabilities)), why)
    monkeypatch.setattr(preflight, "count_gpus", lambda: (len(capabilities), why))
    monkeypatch.setattr(preflight, "gpus_at_hand", lambda: gpus)


@pytest.mark.parametrize("command", ["preflight", "serve"])
def test_preflight_and_serve_refuse_a_wrong_machine_alike(
    command: str, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(repository, precision=Precision("bf16", "bf16", "f32"))
    monkeypatch.setattr(preflight, "_computes_bf16", lambda: False)
    assert "this CPU cannot, which takes AVX-512" in complaint(repository, capsys, command)
    change(repository, compiler=Compiler("tensorrt", "10", "sm_90"))
    _on(monkeypatch, why="the driver is too old for CUDA 13")
    assert "CUDA finds none here: the driver is too old for CUDA 13" in complaint(repository, capsys, command)
    _on(monkeypatch, (8, 9))
    assert "the plan was built for sm_90, GPU 0 is sm_89" in complaint(repository, capsys, command)
    _on(monkeypatch, (9, 0))
    assert "--gpu: there is no GPU 1" in complaint(repository, capsys, command, "--gpu", "1")


def test_preflight_names_the_version_of_the_runtime_that_is_missing(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(repository, compiler=Compiler("tensorrt", "10.1", "sm_90"))
    _on(monkeypatch, (9, 0))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.2"))
    assert "the plan was built by tensorrt 10.1, 10.2 is installed here" in complaint(repository, capsys)


def test_preflight_asks_for_the_gpu_and_the_bindings_of_kernels_of_our_own(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(repository, compiler=Compiler("cuda", "3.7.1", "sm_90"))
    _on(monkeypatch, (8, 9))
    assert "the kernels were compiled for sm_90, GPU 0 is sm_89" in complaint(repository, capsys, "serve")
    _on(monkeypatch, (9, 0))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    assert "compiler.name: the engine needs cuda-bindings" in complaint(repository, capsys)


def test_preflight_names_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder; make one with `trident build`" in complaint(tmp_path / "none", capsys)


def test_preflight_names_what_this_user_may_not_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root of a machine may read everything, the system's refusal is made up here."""
    config = repository / "preprocessing" / "config.pbtxt"

    def is_file(path: Path) -> bool:
        if path == config:
            raise PermissionError(13, "Permission denied", str(path))
        return path.exists()

    monkeypatch.setattr(Path, "is_file", is_file)
    assert main(["preflight", "--repository", str(repository), "--no-server"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"trident preflight: --repository {repository}: {config} cannot be read by user ")
    assert "Traceback" not in said
