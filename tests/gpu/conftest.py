"""What the tests of this folder need: a GPU, TensorRT, and engines built once for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.gpu import hardware
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import Engine

#: Checkpoint's family, precision, weights (None: as stored), further options of `trident build`.
Build = Callable[..., Path]
#: Heads of the size that real models have.
HEAD_DIM = 64
MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_SEQ_LEN = 16, 256, 512


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none, before anything is built for it."""
    if item.get_closest_marker("gpu") and hardware.cuda_missing():
        pytest.skip(hardware.cuda_missing())


@pytest.fixture(scope="session", params=hardware.MODULES)
def compiler(request: pytest.FixtureRequest) -> str:
    """Each compiler that is installed and builds for the GPU at hand."""
    name: str = request.param
    if reason := hardware.module_missing(name):
        pytest.skip(reason)
    major, minor = hardware.capability()
    if name == "tensorrt_rtx" and not hasattr(hardware.import_compiler(name).ComputeCapability, f"SM{major}{minor}"):
        pytest.skip(
            f"TensorRT-RTX does not build for sm_{major}{minor}; test_untargeted.py tries a plan without a target"
        )
    return name


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random checkpoint of a family, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / family
            made[family] = make_checkpoint(folder, family, head_dim=HEAD_DIM)
        return made[family]

    return make


@pytest.fixture(scope="session")
def repository_of(
    compiler: str, checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Build:
    """Repositories for the GPU at hand, each built once, by the user's command."""
    built: dict[tuple[str, ...], Path] = {}

    def make(family: str, precision: str = "fp16", weights: str | None = None, *options: str) -> Path:
        words = [*target_options(compiler), "--precision", precision, *options]
        words += ["--weights", weights] if weights else []
        key = (family, *words)
        if key not in built:
            folder = tmp_path_factory.mktemp("built") / "repository"
            built[key] = build(
                checkpoint_of(family), folder, "--max-num-seqs", str(MAX_NUM_SEQS),
                "--max-num-tokens", str(MAX_NUM_TOKENS), "--max-seq-len", str(MAX_SEQ_LEN), *words,
            )  # fmt: skip
        return built[key]

    return make


def target_options(compiler: str) -> list[str]:
    """The options of `trident build` that choose this compiler for the GPU at hand."""
    if compiler == "tensorrt":
        return ["--engine", "tensorrt"]
    # A named target is always built by TensorRT-RTX.
    return ["--engine", "tensorrt", "--compute-capability", ".".join(str(part) for part in hardware.capability())]


def engine_folder(repository: Path) -> Path:
    """Where a repository's engine lies."""
    return repository / "core" / "1"


@contextmanager
def loaded(repository: Path) -> Iterator[Engine]:
    """Its engine on the first GPU; closed at the end."""
    engine, _ = load_engine(engine_folder(repository))
    try:
        yield engine
    finally:
        engine.close()
