"""Engines of our own kernels for tests: built without compiling, loaded on a GPU that is a double.

Owns the compilation that is none: it writes doubles of cubins. What is built and loaded otherwise is what users get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.fakes.progress import SilentProgress
from tests.tensorrt.double.cubins import Cubin
from trident_backend.engine.cuda import graphs, loading
from trident_backend.engine.factory import load_engine
from trident_backend.engine.gpu.program import Kernel
from trident_backend.engine.protocol import Engine
from trident_compiler.checkpoint.end_of_text import EndOfText
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.tensor_files import PrefixedTensors, TensorFiles
from trident_compiler.compiler import Progress
from trident_compiler.cuda.compiler import CudaCompiler, CudaTarget
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.families.registry import read_decoder
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.planning.memory_plan import CacheSize, LimitsRequest
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Generation,
    KVLayout,
    Limits,
    Manifest,
    write_manifest,
)

CAPABILITY = (8, 9)
_KERNELS_FOLDER = "kernels"
_ROOM = CudaTarget(CAPABILITY, 2**30, "told")


def write_doubles(
    specs: Mapping[str, KernelSpec], capability: tuple[int, int], folder: Path, progress: Progress
) -> dict[str, Kernel]:
    """Write a double of a cubin for each kernel, as `compile_kernels` writes cubins."""
    progress.phase("compiling kernels", len(specs), in_bytes=False)
    (folder / _KERNELS_FOLDER).mkdir()
    found = {}
    for number, (name, spec) in enumerate(specs.items(), start=1):
        file = f"{_KERNELS_FOLDER}/{name}.cubin"
        parts: dict[str, Any] = {
            "entry": spec.function.partition(".")[2],
            "function": spec.function,
            "num_threads": 32 * spec.num_warps,
            # Some take more shared memory than a block has without asking.
            "shared_bytes": 70000 if spec.function == "attention.attend" else 1024 * spec.num_stages,
            "parameters": spec.types,
            "constants": dict(spec.constants),
        }
        (folder / file).write_bytes(Cubin(capability, **parts).save())
        found[name] = Kernel(file, **parts)
        progress.reached(number)
    return found


def build(
    checkpoint: Path,
    folder: Path,
    compute: str = "fp32",
    weights: str | None = None,
    *,
    fp8_cache: bool = False,
    **limits: Any,
) -> Path:
    """Write the engine of a checkpoint, which has a tokenizer or none, into a new folder; returns it.

    Args:
        checkpoint: its folder.
        folder: the engine's.
        compute: fp32, fp16 or bf16.
        weights: of matrices: as compute, or int8, int4, fp8.
        fp8_cache: the KV cache is in fp8.
        limits: fields of `LimitsRequest`; without a cache it holds 4096 tokens.
    """
    opened = open_checkpoint(checkpoint) if (checkpoint / "tokenizer.json").exists() else _open_bare(checkpoint)
    compiler = CudaCompiler(replace(_ROOM, fp8_cache=fp8_cache), "0", write_doubles)
    precision = compiler.precision(opened, compute, weights)
    plan = compiler.plan(opened, precision, LimitsRequest(**{"cache": CacheSize(num_tokens=4096), **limits}))
    folder.mkdir(parents=True)
    compiler.write(folder, opened, precision=precision, plan=plan, progress=SilentProgress())
    model = opened.model
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture(model.model_type, model.num_layers, model.vocab_size),
        limits=Limits(plan.max_num_seqs, plan.max_num_tokens, plan.max_seq_len),
        precision=precision,
        kv_cache=KVLayout(plan.block_size, plan.num_blocks, plan.block_bytes, plan.kv_kind),
        compiler=compiler.compiler,
        generation=opened.generation,
        digests=digest_folder(folder),
        tensor_parallel=compiler.num_devices,
        resident_bytes=plan.resident_bytes,
    )
    write_manifest(folder, manifest)
    return folder


def load(folder: Path, captured: tuple[int, ...] | None = None) -> Engine:
    """Load an engine as a server does; the doubles must be installed.

    Args:
        folder: the engine's.
        captured: sizes of steps that have CUDA graphs, without a step before the first that is asked for; None is what
            a server has, which takes some seconds here.
    """
    if captured is None:
        return load_engine(folder)[0]
    with patch.object(graphs, "_SIZES", captured), patch.object(loading, "warm_up"):
        return load_engine(folder)[0]


def _open_bare(folder: Path) -> Checkpoint:
    """Open a checkpoint without a tokenizer."""
    model = read_decoder(JsonConfig.read(folder / "config.json"))
    tensors = PrefixedTensors(TensorFiles(folder), model.family.base_prefix)
    nothing: Any = None
    return Checkpoint(folder, model, Generation((0,), 1.0, 0, 1.0), EndOfText(()), nothing, tensors=tensors)
