"""What several modules of this folder share: the Python that serves, and servers and repositories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.server import Server, serve
from tests.environments import WITHOUT_TORCH, make_environment
from tests.folder_marks import mark_folder

pytest_ignore_collect, pytest_itemcollected = mark_folder("e2e")


@pytest.fixture(scope="session", autouse=True)
def _served_as_by_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run the commands that the tests start, and the models they serve, without PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        python = make_environment(tmp_path_factory.mktemp("python") / "served", WITHOUT_TORCH)
        patch.setattr(sys, "executable", str(python))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama."""
    return make_checkpoint(tmp_path_factory.mktemp("served") / "checkpoint", "llama", max_position_embeddings=8192)


@pytest.fixture(scope="session")
def roomy_repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It with room for many, behind four postprocessing instances."""
    return build(
        checkpoint, tmp_path_factory.mktemp("roomy") / "repository", "--postprocessing-instances", "4",
        "--max-seq-len", "4608", "--max-num-seqs", "64", "--kv-cache", "256MiB",
    )  # fmt: skip


@pytest.fixture(scope="session")
def narrow_repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It with two places; a test that writes into a repository copies it first."""
    return build(
        checkpoint, tmp_path_factory.mktemp("narrow") / "repository", "--max-num-seqs", "2", "--max-seq-len", "4096",
        "--kv-cache", "8192t",
    )  # fmt: skip


@pytest.fixture(scope="session")
def server(roomy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only need a server."""
    with serve(roomy_repository, tmp_path_factory.mktemp("server") / "log") as running:
        yield running
