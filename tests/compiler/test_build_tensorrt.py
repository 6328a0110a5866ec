"""`trident build --engine tensorrt` as a command, for a GPU that is not here."""

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
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import make_checkpoint
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.tensorrt.gpu import Gpus
from trident_compiler.tensorrt.sampling_networks import sampling_networks
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import Weight, WeightSource
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import BuildError, CheckpointError, PlanError
from trident_ensemble.contract.manifest import read_manifest
from trident_tools import build

pytestmark = pytest.mark.slow

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")

FOR_ADA = ("--engine", "tensorrt", "--compute-capability", "8.9", "--gpu-memory", "8GiB")
SMALL = ("--max-num-seqs", "4", "--max-num-tokens", "64", "--max-seq-len", "127")


def trident_build(*options: str | Path) -> int:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    return build.run(parser.parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=2)


def test_build_tensorrt_the_command_writes_a_whole_repository(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    command = [sys.executable, "-m", "trident_tools.main", "build", str(checkpoint), "--repository", str(target)]
    outcome = subprocess.run([*command, *FOR_ADA, *SMALL], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    engine = target / "core" / "1"
    manifest = read_manifest(engine)
    verify_files(engine, manifest)
    assert (manifest.compiler.name, manifest.compiler.version) == ("tensorrt_rtx", trt.__version__)
    assert manifest.compiler.target == "sm_89"
    assert (manifest.precision.compute, manifest.precision.weights, manifest.precision.kv_cache) == ("bf16",) * 3
    assert manifest.tensor_parallel == 1
    cache = manifest.kv_cache
    assert (cache.kind, cache.num_blocks, cache.block_size) == ("slots", 4, 127)
    assert cache.block_bytes == 2 * 2 * 2 * 128 * 16 * 2  # keys and values, layers, heads, positions, features, bytes
    plan = (engine / "network.plan").read_bytes()
    assert plan.startswith(b"vtrt")
    sampling = {path.stem for path in (engine / layout.SAMPLING_FOLDER).glob("*.plan")}
    assert sampling == {network.name for network in sampling_networks(400, 64)}
    config = (target / "core" / "config.pbtxt").read_text()
    assert "kind: KIND_GPU" in config
    assert "gpus: 0" in config
    for line in (
        f"engine    tensorrt_rtx {trt.__version__} for sm_89: as asked",
        "memory    8.00 GiB of the GPU, as --gpu-memory says",
        "4 slots of 127 tokens, 508 tokens, 4 sequences of full length",
        "compiling the network ...",
    ):
        assert line in outcome.stdout
    assert not (engine / layout.NETWORK_FILE).exists()


def test_build_tensorrt_the_plan_holds_the_layers_of_the_checkpoint(tmp_path: Path) -> None:
    wide: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    stored, built = [], []
    for num_layers in (1, 3):
        checkpoint = make_checkpoint(tmp_path / str(num_layers), "llama", num_hidden_layers=num_layers, **wide)
        target = tmp_path / f"repository {num_layers}"
        trident_build(checkpoint, "--repository", target, *FOR_ADA, *SMALL, "--quiet")
        stored.append(open_checkpoint(checkpoint).tensors.num_bytes)
        built.append((target / "core" / "1" / "network.plan").stat().st_size)
    assert 0 <= (built[1] - built[0]) - (stored[1] - stored[0]) < (stored[1] - stored[0]) // 4


def test_build_tensorrt_matrices_that_int4_does_not_fit_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 2}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", intermediate_size=96, **heads)
    options = (checkpoint, "--repository", tmp_path / "repository", *FOR_ADA, *SMALL, "--weights", "int4")
    trident_build(*options)
    assert "precision bf16, int4 weights, bf16 KV cache" in capsys.readouterr().out
    trident_build(*options, "--tensor-parallel", "2")
    told = "int4 weights (2 of 14 matrices in int8: their parts of rows are no multiple of 32), bf16 KV cache"
    assert told in capsys.readouterr().out


def test_build_tensorrt_an_engine_serves_on_the_gpu_that_is_named(checkpoint: Path, tmp_path: Path) -> None:
    trident_build(checkpoint, "--repository", tmp_path / "r", *FOR_ADA, *SMALL, "--gpu", "3", "--quiet")
    assert "gpus: 3" in (tmp_path / "r" / "core" / "config.pbtxt").read_text()


def test_build_tensorrt_two_devices_have_two_plans_and_two_gpus(tmp_path: Path) -> None:
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 1}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", **heads)
    target = tmp_path / "repository"
    trident_build(checkpoint, "--repository", target, *FOR_ADA, *SMALL, "--tensor-parallel", "2", "--quiet")
    engine = target / "core" / "1"
    manifest = read_manifest(engine)
    verify_files(engine, manifest)
    assert manifest.tensor_parallel == 2
    assert sorted(path.name for path in engine.glob("*.plan")) == ["network.0.plan", "network.1.plan"]
    assert manifest.kv_cache.block_bytes == 2 * 1 * 2 * 128 * 16 * 2  # of each device
    with pytest.raises(PlanError, match="--tensor-parallel: 3 devices"):
        trident_build(checkpoint, "--repository", target, *FOR_ADA, "--tensor-parallel", "3", "--quiet")


def test_build_tensorrt_without_a_gpu_the_engine_is_for_this_cpu_and_the_plan_says_why(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trident_compiler.compiler_choice.gpus_at_hand", lambda: Gpus((), "no NVIDIA GPU found"))
    trident_build(checkpoint, "--repository", tmp_path / "repository", "--kv-cache", "2048t")
    printed = capsys.readouterr().out
    assert "engine    openvino 20" in printed
    assert "for this CPU: no NVIDIA GPU found" in printed
    assert read_manifest(tmp_path / "repository" / "core" / "1").kv_cache.kind == "blocks"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "fp16"), "--precision fp16: OpenVINO computes in bf16 or fp32"),
        (("--weights", "fp8"), "--weights fp8: OpenVINO takes bf16, int8 or int4"),
    ],
)
def test_build_tensorrt_formats_of_gpus_are_refused_for_cpus(
    checkpoint: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        trident_build(checkpoint, "--repository", tmp_path / "r", "--engine", "openvino", *options, "--quiet")
    assert not list(tmp_path.iterdir())


def test_build_tensorrt_a_refused_build_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    for options in (
        ("--weights", "fp8", "--compute-capability", "8.0"),
        ("--gpu-memory", "1MiB"),
        ("--precision", "fp32"),
    ):
        with pytest.raises(BuildError):
            trident_build(checkpoint, "--repository", tmp_path / "r", *FOR_ADA, *options, "--quiet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_build_tensorrt_an_interrupted_compilation_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", num_hidden_layers=24)
    command = [sys.executable, "-u", "-m", "trident_tools.main", "build", str(checkpoint)]
    command += ["--repository", str(tmp_path / "r")]
    with subprocess.Popen([*command, *FOR_ADA, *SMALL], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("compiling the network"):
                break
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) != 0
        assert "compiling sampling" not in process.stdout.read()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def source_of(checkpoint: Path, matrix: str, plain: str, *, tied: bool = False) -> WeightSource:
    return WeightSource(open_checkpoint(checkpoint).tensors, matrix, plain, tied=tied, uniform=True)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("plain", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_build_tensorrt_plain_weights_are_all_of_one_format(
    tmp_path: Path, stored: torch.dtype, plain: str, kind: torch.dtype
) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", dtype=stored, num_hidden_layers=1)
    weight = source_of(checkpoint, plain, plain).matrix("model.layers.0.mlp.up_proj.weight", 160, 64, Role.COLUMN)
    assert weight.format == plain
    expected = load_file(checkpoint / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].to(kind)
    np.testing.assert_array_equal(weight.values.view(np.uint16), expected.view(torch.uint16).numpy())


def test_build_tensorrt_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=1)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = 70000
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj.*too large for float16.*bf16"):
        source_of(checkpoint, "fp16", "fp16").matrix("model.layers.0.mlp.up_proj.weight", 160, 64, Role.COLUMN)


@pytest.mark.parametrize(("matrix", "head"), [("int8", "int8"), ("int4", "int8"), ("fp8", "bf16"), ("bf16", "bf16")])
def test_build_tensorrt_a_tied_table_is_plain_where_rows_are_looked_up(tmp_path: Path, matrix: str, head: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "qwen2", "qwen2", num_hidden_layers=1)
    source = source_of(checkpoint, matrix, "bf16", tied=True)
    name = "model.embed_tokens.weight"
    rows: Weight = source.embedding(name, 400, 64)
    projection = source.head(name, 400, 64)
    assert (rows.format, projection.format) == ("bf16", head)
    assert (rows.name == projection.name) == (rows is projection) == (head == "bf16")
    assert projection.zero_points is None
