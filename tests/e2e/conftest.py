"""One server for all tests that only need a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.server import Server, serve


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama."""
    return make_checkpoint(tmp_path_factory.mktemp("served") / "checkpoint", "llama", max_position_embeddings=8192)


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It behind four postprocessing instances."""
    folder = tmp_path_factory.mktemp("server")
    repository = build(
        checkpoint, folder / "repository", "--postprocessing-instances", "4", "--max-seq-len", "4608",
        "--max-num-seqs", "64", "--kv-cache", "256MiB",
    )  # fmt: skip
    with serve(repository, folder / "log") as running:
        yield running
