"""One server for all tests that only need a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.server import Server, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny random Llama behind four postprocessing instances."""
    folder: Path = tmp_path_factory.mktemp("server")
    checkpoint = make_checkpoint(folder / "checkpoint", "llama", max_position_embeddings=8192)
    repository = build(
        checkpoint, folder / "repository", "--postprocessing-instances", "4", "--max-seq-len", "4608",
        "--max-num-seqs", "64", "--kv-cache", "256MiB",
    )  # fmt: skip
    with serve(repository, folder / "log") as running:
        yield running
