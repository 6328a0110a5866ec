"""TensorRT-RTX really compiles the networks that devices share, each device's with its collectives."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorrt_rtx_bindings as trt

from tests.checkpoints import make_checkpoint
from tests.fakes.progress import SilentProgress
from trident_compiler.engine_builder import build_engine
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest
from trident_compiler.tensorrt.compiler import TensorRTCompiler, TensorRTTarget
from trident_ensemble.contract.errors import CheckpointError, PlanError
from trident_ensemble.contract.manifest import read_manifest
from trident_preprocessing.chat.template_probe import write_template_profiles

WANTED = LimitsRequest(max_num_seqs=4, max_num_tokens=32, max_seq_len=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(
        make_checkpoint(
            tmp_path_factory.mktemp("plans") / "checkpoint",
            "qwen2",
            hidden_size=256,
            intermediate_size=512,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            num_hidden_layers=1,
        )
    )


def compiler(num_devices: int, capability: tuple[int, int]) -> TensorRTCompiler:
    return TensorRTCompiler(trt, TensorRTTarget("tensorrt_rtx", capability, None, 4 << 30, "told", num_devices))


@pytest.mark.parametrize(
    ("num_devices", "capability", "weight_format"),
    [(2, (8, 0), "int8"), (2, (8, 9), "int4"), (2, (8, 9), "fp8"), (4, (8, 9), None)],
)
def test_parallel_plans_each_device_gets_its_plan(
    num_devices: int, capability: tuple[int, int], weight_format: str | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    divided = compiler(num_devices, capability)
    precision = divided.precision(checkpoint, "bf16", weight_format)
    plan = divided.plan(checkpoint, precision, WANTED)
    build_engine(
        checkpoint,
        tmp_path,
        precision,
        plan,
        compiler=divided,
        describe_text=write_template_profiles,
        progress=SilentProgress(),
    )
    files = {path.name for path in tmp_path.glob("network*")}
    assert files == {f"network.{rank}.plan" for rank in range(num_devices)}
    manifest = read_manifest(tmp_path)
    assert manifest.tensor_parallel == num_devices
    assert files < manifest.digests.keys()
    # Each device keeps its heads' part of every slot: keys and values of so many heads of 64 numbers of 16 bits.
    cache = manifest.kv_cache
    assert cache.block_bytes == 2 * (4 // num_devices) * (cache.block_size + 1) * 64 * 2


def test_parallel_plans_heads_that_no_number_of_devices_can_share_are_refused(checkpoint: Checkpoint) -> None:
    precision = compiler(1, (8, 9)).precision(checkpoint, "bf16", None)
    with pytest.raises(PlanError, match=r"--tensor-parallel: 3 devices cannot share .*16 attention heads"):
        compiler(3, (8, 9)).plan(checkpoint, precision, WANTED)


def test_parallel_plans_heads_that_are_too_few_for_an_attention_kernel_are_refused(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", head_dim=64))
    precision = compiler(1, (8, 9)).precision(opened, "bf16", None)
    compiler(1, (8, 9)).plan(opened, precision, WANTED)
    with pytest.raises(CheckpointError, match=r"num_attention_heads = 4.*no attention"):
        compiler(2, (8, 9)).plan(opened, precision, WANTED)
