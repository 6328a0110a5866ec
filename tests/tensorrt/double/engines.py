"""Engine folders for tests of the host: the compiler's network, recorded, and a manifest that a test may bend.

Owns the two modules' installation in this process. Never uses the compiler that writes engines for users.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tensorrt.double import faults, tensorrt
from tests.tensorrt.double.gpu import GPUS
from trident_compiler.families.family import Decoder
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.tensorrt.sampling_networks import sampling_networks
from trident_compiler.weights.sharding import ShardSpec
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Compiler,
    Generation,
    KVKind,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    write_manifest,
)

_MODULES = {
    "tensorrt": "tests.tensorrt.double.tensorrt",
    "cuda.bindings.runtime": "tests.tensorrt.double.cuda.bindings.runtime",
    "cuda.bindings.driver": "tests.tensorrt.double.cuda.bindings.driver",
}
_KV_FORMATS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Limit:
    """What an engine is built for."""

    compute: str = "fp32"
    max_num_seqs: int = 6
    max_num_tokens: int = 64
    slot_len: int = 65
    num_devices: int = 1


@contextmanager
def installed() -> Iterator[None]:
    """The doubles in the places of `tensorrt` and `cuda.bindings.runtime`, and a new machine."""
    before = {name: sys.modules.get(name) for name in _MODULES}
    sys.modules.update({name: importlib.import_module(double) for name, double in _MODULES.items()})
    GPUS.reset()
    faults.clear()
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def build(checkpoint: Path, folder: Path, limit: Limit) -> Manifest:
    """Write an engine folder: a plan and its manifest."""
    opened = open_checkpoint(checkpoint)
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    folder.mkdir(parents=True)
    for rank in range(limit.num_devices):
        plan = _plan(builder, opened, limit, ShardSpec(rank, limit.num_devices))
        (folder / layout.plan_file(rank, limit.num_devices)).write_bytes(plan)
    _write_sampling(builder, folder / layout.SAMPLING_FOLDER, opened.model.vocab_size, limit)
    manifest = _manifest(opened.model, limit, folder)
    write_manifest(folder, manifest)
    return manifest


def _plan(builder: Any, opened: Checkpoint, limit: Limit, share: ShardSpec) -> bytes:
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    lowering = TensorRTLowering(tensorrt, network, limit.compute, limit.slot_len, share.num_ranks)
    source = WeightSource(
        opened.tensors,
        limit.compute,
        limit.compute,
        tied=opened.model.outline.is_tied,
        uniform=True,
        share=share,
    )
    lowering.finish(opened.model.write(lowering, source))
    config = builder.create_builder_config()
    for profile in _profiles(builder, opened.model, limit):
        config.add_optimization_profile(profile)
    plan: bytes | None = builder.build_serialized_network(network, config)
    assert plan is not None
    return plan


def _write_sampling(builder: Any, folder: Path, vocab_size: int, limit: Limit) -> None:
    folder.mkdir()
    for small in sampling_networks(vocab_size, limit.max_num_tokens):
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        kept = small.write(tensorrt, network)
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for name, shapes in small.profile.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, kept
        (folder / f"{small.name}.plan").write_bytes(plan)


def _profiles(builder: Any, model: Decoder, limit: Limit) -> Iterator[Any]:
    chunk = min(limit.max_num_tokens, limit.slot_len)
    for most_seqs, most_tokens in ((limit.max_num_seqs, 1), (1, chunk)):
        profile = builder.create_optimization_profile()
        most = (most_seqs, most_tokens)
        for name in ("token_ids", "position_ids"):
            profile.set_shape(name, (1, 1), most, most)
        for name in ("past_lens", "context_lens"):
            profile.set_shape(name, (1,), (most_seqs,), (most_seqs,))
        profile.set_shape("logit_rows", (1,), (most_seqs * most_tokens,), (most_seqs * most_tokens,))
        for index, layer in enumerate(model.outline.layers):
            for name, width in ((f"key_cache.{index}", layer.head_dim), (f"value_cache.{index}", layer.v_head_dim)):
                rest = (layer.num_kv_heads // limit.num_devices, limit.slot_len, width)
                profile.set_shape(name, (1, *rest), (most_seqs, *rest), (most_seqs, *rest))
        yield profile


def _manifest(model: Decoder, limit: Limit, folder: Path) -> Manifest:
    num_values = sum(layer.kv_size for layer in model.outline.layers) // limit.num_devices
    position_bytes = num_values * _BYTES[limit.compute]
    return Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture(model.model_type, model.num_layers, model.vocab_size),
        limits=Limits(limit.max_num_seqs, limit.max_num_tokens, limit.slot_len - 1),
        precision=Precision(limit.compute, limit.compute, _KV_FORMATS[limit.compute]),
        kv_cache=KVLayout(limit.slot_len - 1, limit.max_num_seqs, limit.slot_len * position_bytes, KVKind.SLOTS),
        compiler=Compiler("tensorrt", tensorrt.__version__, "sm_89"),
        generation=Generation((0,), 1.0, 0, 1.0),
        digests=digest_folder(folder),
        tensor_parallel=limit.num_devices,
    )
