"""On a machine with a GPU, what is meant for CPUs is built for CPUs. The GPU is a double: see tests/tensorrt/double."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.tensorrt.double import environment
from trident_ensemble.contract.manifest import read_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("for-cpus") / "checkpoint", "llama")


@pytest.fixture(autouse=True, scope="module")
def machine_with_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The doubles in the places of cuda-python and TensorRT, for what is started from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(environment.make(tmp_path_factory.mktemp("python") / "doubles")))
        yield


def compiler_of(repository: Path) -> str:
    return read_manifest(repository / "core" / "1").compiler.name


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trident_tools.main", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_building_for_cpus_there_the_choice_would_be_tensorrt(checkpoint: Path, tmp_path: Path) -> None:
    done = run("build", str(checkpoint), "--repository", str(tmp_path / "repository"), "--precision", "fp32")
    assert done.returncode == 1
    assert "fp32" in done.stderr
    assert "fp16" in done.stderr


def test_building_for_cpus_the_tests_and_benchmarks_build_for_cpus(checkpoint: Path, tmp_path: Path) -> None:
    assert compiler_of(build(checkpoint, tmp_path / "repository")) == "openvino"


def test_building_for_cpus_the_demo_of_make_serve_is_built_for_cpus(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    variables = dict(re.findall(r"^(\w+) := (.*)$", makefile, re.MULTILINE))
    lines = re.findall(r"^\t(?:\w+=\w+ )?\.venv/bin/trident (build .*)$", makefile, re.MULTILINE)
    assert all("--engine openvino" in line for line in lines)
    (line,) = [line for line in lines if "$(CHECKPOINT)" in line]
    variables["REPOSITORY"] = str(tmp_path / "repository")
    words = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], line).split()
    done = run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert compiler_of(tmp_path / "repository") == "openvino"
