"""`trident build --engine cuda` as a command, for GPUs that are not here."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import make_checkpoint
from tests.cuda.engines import CAPABILITY, load, write_doubles
from tests.cuda.engines import build as build_double
from tests.fakes.progress import SilentProgress
from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.cuda.manifest_check import check_manifest
from trident_backend.engine.cuda.program_checks import check_program
from trident_backend.engine.cuda.program_file import read_program
from trident_backend.engine.gpu.program import AttentionCall, Kernel
from trident_compiler.cuda import kernel_compiler
from trident_compiler.cuda.compiler import CudaCompiler, CudaTarget
from trident_compiler.cuda.memory import CONTEXT_BYTES
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest
from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import BuildError, PlanError
from trident_ensemble.contract.manifest import read_manifest
from trident_tools import build

FOR_HOPPER = ("--engine", "cuda", "--compute-capability", "9.0", "--gpu-memory", "8GiB")
SMALL = ("--max-num-seqs", "4", "--max-num-tokens", "16", "--max-seq-len", "127")


def trident_build(*options: str | Path) -> int:
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    return build.run(parser.parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama", num_hidden_layers=2)


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cubins are doubles."""
    monkeypatch.setattr(kernel_compiler, "compile_kernels", write_doubles)


def test_build_cuda_the_command_compiles_a_whole_repository(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    command = [sys.executable, "-m", "trident_tools.main", "build", str(checkpoint), "--repository", str(target)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command += [*FOR_HOPPER, *SMALL, "--max-num-seqs", "1", "--gpu", "3"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    engine = target / "core" / "1"
    manifest = read_manifest(engine)
    verify_files(engine, manifest)
    assert (manifest.compiler.name, manifest.compiler.target) == ("cuda", "sm_90")
    assert manifest.compiler.version == kernel_compiler.triton_version()
    program = read_program(engine)
    assert {kernel.file for kernel in program.kernels.values()} == {
        f"kernels/{path.name}" for path in (engine / "kernels").iterdir()
    }
    assert all((engine / kernel.file).read_bytes()[:4] == b"\x7fELF" for kernel in program.kernels.values())
    config = (target / "core" / "config.pbtxt").read_text()
    assert "kind: KIND_GPU" in config
    assert "gpus: 3" in config


@pytest.mark.usefixtures("_no_compiler")
def test_build_cuda_the_plan_is_told_and_kept(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trident_build(checkpoint, "--repository", tmp_path / "r", *FOR_HOPPER, *SMALL, "--weights", "int8")
    engine = tmp_path / "r" / "core" / "1"
    manifest, program = read_manifest(engine), read_program(engine)
    last = program.weights[-1]
    assert (engine / "network.bin").stat().st_size == last.offset + last.num_bytes
    precision = manifest.precision
    assert (precision.compute, precision.weights, precision.kv_cache) == ("bf16", "int8", "bf16")
    cache = manifest.kv_cache
    assert (cache.kind, cache.block_size, cache.num_blocks) == ("blocks", 32, 16)
    assert cache.block_bytes == 2 * 2 * 2 * 32 * 16 * 2  # keys and values, layers, heads, tokens, features, bytes
    assert sum(isinstance(step, AttentionCall) for step in program.body) == 2
    printed = capsys.readouterr().out
    for line in (
        f"engine    cuda {manifest.compiler.version} for sm_90: as asked",
        "precision bf16, int8 weights, bf16 KV cache",
        "memory    8.00 GiB of the GPU, as --gpu-memory says",
        "and all but the KV cache",
        "16 blocks of 32 tokens, 512 tokens, 4 sequences of full length",
        "compiling kernels ...",
    ):
        assert line in printed


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize(("compute", "times"), [("bf16", 2), ("fp32", 4)])
def test_build_cuda_a_cache_of_fp8_has_room_for_more_tokens(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], compute: str, times: int
) -> None:
    given = (*FOR_HOPPER, *SMALL, "--precision", compute, "--kv-cache", f"{16 * times}KiB")
    manifests, programs = [], []
    for name, precision in (("plain", "auto"), ("rounded", "fp8")):
        trident_build(checkpoint, "--repository", tmp_path / name, *given, "--kv-cache-precision", precision)
        engine = tmp_path / name / "core" / "1"
        manifests.append(read_manifest(engine))
        programs.append(read_program(engine))
        check_program(programs[-1])
        check_manifest(manifests[-1], programs[-1])
    plain, rounded = (manifest.kv_cache for manifest in manifests)
    assert (plain.num_blocks, rounded.num_blocks) == (4, 4 * times)
    assert plain.block_bytes == times * rounded.block_bytes
    assert [program.cache_dtype for program in programs] == [compute, "fp8e4nv"]
    assert manifests[1].precision == replace(manifests[0].precision, kv_cache="fp8")
    printed = capsys.readouterr().out
    for line in (
        f"precision {compute}, {compute} weights, fp8 KV cache",
        f"{4 * times} blocks of 32 tokens, {128 * times} tokens, {times} sequences of full length",
    ):
        assert line in printed
    program = programs[1]
    for kind in program.attention_kinds:
        for name in (kind.write, kind.few, kind.many):
            kernel = program.kernels[name]
            assert kernel.constants["QUANT"]
            types = dict(kernel.parameters)
            assert types["key_cache"] == types["value_cache"] == "*fp8e4nv"
    for call in program.body:
        if isinstance(call, AttentionCall):
            assert {call.arguments[name].number for name in ("key_factor", "value_factor")} == {1.0}


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "fp8", "--compute-capability", "8.0"), "--weights fp8: sm_80 .* begins with sm_89"),
        (
            ("--kv-cache-precision", "fp8", "--compute-capability", "8.6"),
            "--kv-cache-precision fp8: sm_86 .* begins with sm_89; leave it out",
        ),
        (("--weights", "fp16", "--precision", "bf16"), "--weights fp16: .*as the computation, which is bf16"),
        (("--compute-capability", "7.5"), "no kernels for compute capability 7.5; there are for 8.0"),
        (("--tensor-parallel", "2"), "--tensor-parallel 2: .*one GPU"),
        (("--attention", "lengths"), "--attention lengths: there are no slots"),
        (("--gpu-memory", "600MiB", "--max-num-tokens", "65536"), "weights and what a step takes: .*--max-num-tokens"),
        (("--kv-cache", "16GiB"), "--kv-cache: .*of weights and what a step takes is more"),
    ],
)
def test_build_cuda_a_refused_build_changes_nothing(
    checkpoint: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises((BuildError, PlanError), match=words):
        trident_build(checkpoint, "--repository", tmp_path / "r", *FOR_HOPPER, *SMALL, *options, "--quiet")
    assert not list(tmp_path.iterdir())


def test_build_cuda_defaults_are_those_of_gpus(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    compiler = CudaCompiler(CudaTarget((9, 0), 2 << 30, "free"), "0", write_doubles)
    precision = compiler.precision(opened, None, None)
    plan = compiler.plan(opened, precision, LimitsRequest(max_num_seqs=4096))
    assert plan.max_num_tokens == 4096
    plan = compiler.plan(opened, precision, LimitsRequest())
    assert plan.max_num_tokens == 2048
    assert plan.num_blocks * plan.block_bytes <= 0.9 * (plan.free_bytes - plan.resident_bytes)


def test_build_cuda_an_engine_takes_what_was_planned(checkpoint: Path, tmp_path: Path) -> None:
    """The host allocates no more than the plan says, and not much less but for what CUDA itself takes."""
    opened = open_checkpoint(checkpoint)
    compiler = CudaCompiler(CudaTarget(CAPABILITY, 4 << 30, "free"), "0", write_doubles)
    precision = compiler.precision(opened, None, None)
    wanted = LimitsRequest(max_num_seqs=8, max_num_tokens=64, max_seq_len=128)
    plan = compiler.plan(opened, precision, wanted)
    limits: dict[str, Any] = {**vars(wanted), "cache": None}
    folder = build_double(checkpoint, tmp_path / "1", precision.compute, **limits)
    with installed():
        before = GPUS.free_bytes()
        engine = load(folder, captured=(1,))
        taken = before - GPUS.free_bytes()
        engine.close()
    planned = plan.resident_bytes - CONTEXT_BYTES + plan.cache_bytes
    assert planned - (1 << 26) < taken <= planned


def test_build_cuda_kernels_are_compiled_before_weights_are_converted(checkpoint: Path, tmp_path: Path) -> None:
    """What may fail within a minute comes before what takes an hour."""

    def refused(*_: object) -> dict[str, Kernel]:
        raise BuildError("a kernel cannot be compiled")

    target = tmp_path / "1"
    target.mkdir()
    opened = open_checkpoint(checkpoint)
    compiler = CudaCompiler(CudaTarget((9, 0), 4 << 30, "free"), "0", refused)
    precision = compiler.precision(opened, "bf16", "int4")
    plan = compiler.plan(opened, precision, LimitsRequest(max_num_seqs=2, max_num_tokens=16, max_seq_len=64))
    with pytest.raises(BuildError, match="cannot be compiled"):
        compiler.write(target, opened, precision=precision, plan=plan, progress=SilentProgress())
    assert not list(target.iterdir())


def test_build_cuda_a_program_that_cannot_be_written_is_a_refused_build(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "1" / "program.json").mkdir(parents=True)
    opened = open_checkpoint(checkpoint)
    compiler = CudaCompiler(CudaTarget((9, 0), 4 << 30, "free"), "0", write_doubles)
    precision = compiler.precision(opened, None, None)
    plan = compiler.plan(opened, precision, LimitsRequest(max_num_seqs=2, max_num_tokens=16, max_seq_len=64))
    with pytest.raises(BuildError, match=r"program\.json cannot be written: .*directory"):
        compiler.write(tmp_path / "1", opened, precision=precision, plan=plan, progress=SilentProgress())


def test_build_cuda_weights_are_written_one_at_a_time(tmp_path: Path) -> None:
    """Converting a model takes the memory of a few of its matrices, however many layers it has."""
    folder = make_checkpoint(tmp_path / "llama", "llama", num_hidden_layers=12, intermediate_size=8192)
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    save_file({name: value.to(torch.float32) for name, value in tensors.items()}, folder / "model.safetensors")
    opened = open_checkpoint(folder)
    compiler = CudaCompiler(CudaTarget((9, 0), 4 << 30, "free"), "0", write_doubles)
    precision = compiler.precision(opened, "bf16", "int8")
    plan = compiler.plan(opened, precision, LimitsRequest(max_num_seqs=2, max_num_tokens=16, max_seq_len=64))
    target = tmp_path / "1"
    target.mkdir()
    tracemalloc.start()
    compiler.write(target, opened, precision=precision, plan=plan, progress=SilentProgress())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.7 * (target / "network.bin").stat().st_size
