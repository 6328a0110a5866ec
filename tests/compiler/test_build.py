"""`trident build` as a command: what it writes, what it prints, how much memory it takes."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bfloat16 import needs_bf16
from tests.checkpoints import make_checkpoint
from trident_compiler.openvino.compiler import RESIDENT_SHARE
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import BuildError, CheckpointError, PlanError
from trident_ensemble.contract.manifest import read_manifest
from trident_ensemble.text.anchors import anchor_table
from trident_ensemble.wiring import RepositorySettings, read_card, render_repository
from trident_preprocessing.chat.template_probe import probe_template
from trident_preprocessing.chat.template_profile import read_profiles
from trident_tools import build

pytestmark = pytest.mark.slow


def trident_build(*options: str | Path) -> int:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    return build.run(parser.parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", end_ids=[0, 3])


def test_build_of_a_whole_model_refuses_one_with_other_versions_before_anything_is_compiled(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "repository" / "core" / "2").mkdir(parents=True)
    with pytest.raises(BuildError, match=r"core has version 2, .* add the engine with --new-version"):
        trident_build(checkpoint, "--repository", tmp_path / "repository")
    assert capsys.readouterr().out == "", "nothing was planned or compiled"
    assert [path.name for path in (tmp_path / "repository").rglob("*")] == ["core", "2"]


def test_build_the_repository_is_complete_and_relocatable(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, before = tmp_path / "repository", int(time.time())
    assert trident_build(checkpoint, "--repository", target, "--max-seq-len", "512", "--kv-cache", "2048t") == 0
    card = read_card((target / "ensemble" / layout.CONFIG_FILE).read_text())
    assert card is not None
    assert (card.name, card.max_seq_len, card.takes_messages) == ("llama", 512, True)
    assert before <= card.created <= time.time()
    for name, text in render_repository(RepositorySettings(), card).items():
        assert (target / name).read_text() == text
    engine = target / "core" / "1"
    manifest = read_manifest(engine)
    verify_files(engine, manifest)
    assert layout.TEMPLATE_PROFILES_FILE in manifest.digests
    assert read_profiles(engine) == probe_template(engine / layout.TOKENIZER_FOLDER)
    assert manifest.generation.end_ids == (0, 3)
    assert manifest.limits.max_seq_len == 512
    assert manifest.resident_bytes > 0
    cache = manifest.kv_cache
    assert manifest.memory_bytes == manifest.resident_bytes + cache.num_blocks * cache.block_bytes
    assert manifest.kv_cache.num_blocks * manifest.kv_cache.block_size == 2048
    tokenizer = engine / layout.TOKENIZER_FOLDER
    assert {path.name for path in tokenizer.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}
    assert "<|assistant|>" in (tokenizer / "chat_template.jinja").read_text()
    table = np.load(engine / layout.TOKEN_TABLE_FILE, allow_pickle=False)
    np.testing.assert_array_equal(table, anchor_table(tokenizer / "tokenizer.json", 400))
    for path in target.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content
            assert str(checkpoint).encode() not in content
    printed = capsys.readouterr().out
    assert "2048 tokens, 4 sequences of full length" in printed
    assert "llama, 3 layers" in printed


def test_build_a_second_build_says_what_it_replaces(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "repository"
    trident_build(checkpoint, "--repository", target, "--precision", "fp32", "--kv-cache", "2048t", "--quiet")
    assert capsys.readouterr().out == ""
    trident_build(checkpoint, "--repository", target, "--weights", "int8", "--kv-cache", "2048t")
    printed = capsys.readouterr().out
    assert "replaced  core/1: llama, 3 layers, fp32, bf16 weights, built by openvino 2" in printed
    assert read_manifest(target / "core" / "1").precision.weights == "int8"


def test_build_a_cpu_without_bfloat16_is_said_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trident_compiler.openvino.compiler.computes_bf16", lambda: False)
    with pytest.raises(BuildError, match="--precision bf16: this CPU"):
        trident_build(checkpoint, "--repository", tmp_path / "repository", "--precision", "bf16", "--quiet")


def test_build_a_refused_build_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    with pytest.raises(PlanError, match="--kv-cache"):
        trident_build(checkpoint, "--repository", target, "--kv-cache", "64t", "--max-seq-len", "65", "--quiet")
    with pytest.raises(CheckpointError):
        trident_build(tmp_path / "nowhere", "--repository", target, "--quiet")
    assert not list(tmp_path.iterdir())


MEASURE = """
import argparse, sys
from pathlib import Path
from trident_tools import build

def peak():
    # Of this program alone: getrusage would count what the process was before, a pytest full of torch.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

parser = argparse.ArgumentParser()
build.add_arguments(parser)
# A tiny build first, so that what is measured is the checkpoint and not the libraries.
build.run(parser.parse_args([sys.argv[1], "--repository", sys.argv[3] + "/tiny", "--quiet", *sys.argv[4:]]))
before = peak()
build.run(parser.parse_args([sys.argv[2], "--repository", sys.argv[3] + "/large", "--quiet", *sys.argv[4:]]))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 300 MB."""
    folder = tmp_path_factory.mktemp("checkpoint") / "large"
    shape: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    return make_checkpoint(folder, "llama", vocab_size=16000, num_hidden_layers=8, initializer_range=0.02, **shape)


_IN_BF16 = pytest.param(("--precision", "bf16"), marks=needs_bf16)


@pytest.mark.parametrize("options", [("--precision", "fp32"), _IN_BF16, ("--weights", "int8"), ("--weights", "int4")])
def test_build_memory_stays_within_one_and_a_half_checkpoints(
    checkpoint: Path, large: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    num_bytes = (large / "model.safetensors").stat().st_size
    assert num_bytes > 250e6
    command = [sys.executable, "-c", MEASURE, str(checkpoint), str(large), str(tmp_path), *options]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) <= 1.5 * num_bytes


LOAD = """
import sys
from pathlib import Path
import numpy as np
import openvino
from trident_backend.engine.factory import load_engine
from trident_backend.engine.protocol import StepBatch, execute

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

openvino.Core().get_versions("CPU")
before = resident()
engine, _ = load_engine(Path(sys.argv[1]))
for size in (1, 8):
    each, ends = np.arange(size, dtype=np.int32), np.arange(size + 1, dtype=np.int32)
    execute(engine, StepBatch(each, each * 0, each * 0, ends, each, ends, 1, each))
print(resident() - before)
"""


@pytest.mark.parametrize("options", [("--precision", "fp32"), _IN_BF16, ("--weights", "int8")])
def test_build_a_running_engine_takes_what_the_plan_says(large: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    # Steps of few tokens: the plan counts weights, and leaves activations to what the cache does not take.
    few = ("--max-num-seqs", "8", "--max-num-tokens", "32")
    trident_build(large, "--repository", tmp_path / "repository", "--kv-cache", "2048t", "--quiet", *few, *options)
    engine = tmp_path / "repository" / "core" / "1"
    outcome = subprocess.run([sys.executable, "-c", LOAD, engine], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) <= 1.1 * RESIDENT_SHARE * (engine / layout.WEIGHTS_FILE).stat().st_size


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_build_an_interrupted_build_leaves_nothing(large: Path, tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import argparse, sys; from trident_tools import build; parser = argparse.ArgumentParser();"
        "build.add_arguments(parser); build.run(parser.parse_args(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(large), "--repository", str(tmp_path / "repository"), "--quiet"]
    with subprocess.Popen([*command, "--weights", "int4"], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) != 0
    assert not list(tmp_path.iterdir())
