"""Real plans: every family, in every number format that a target knows, is compiled for GPUs that are not here.

What a plan computes is another matter (test_parity); here TensorRT itself says that it can be built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import FAMILIES, make_checkpoint
from tests.fakes.progress import SilentProgress
from trident_compiler.model_folder import Checkpoint, open_checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
from trident_compiler.tensorrt.builder import NetworkCompiler
from trident_compiler.tensorrt.compiler import TensorRTCompiler, TensorRTTarget
from trident_compiler.tensorrt.progress_monitor import NestedShares
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.errors import BuildError, CheckpointError
from trident_ensemble.contract.manifest import KVKind

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")

TURING, AMPERE, ADA, BLACKWELL = (7, 5), (8, 0), (8, 9), (12, 0)
TARGETS = (AMPERE, (8, 6), ADA, BLACKWELL)
WANTED = LimitsRequest(max_num_seqs=4, max_num_tokens=64, max_seq_len=127)
PLAN = MemoryPlan(
    free_bytes=2**33,
    weights_bytes=0,
    resident_bytes=0,
    max_num_seqs=4,
    max_num_tokens=64,
    max_seq_len=127,
    kv_kind=KVKind.SLOTS,
    block_size=127,
    block_bytes=0,
    num_blocks=4,
)
#: A layer whose weights are more than its kernels, of which a plan has about 1.5 MB for each.
WIDE = {"hidden_size": 512, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2}
#: How TensorRT's plans begin.
MAGIC = b"vtrt"


class Checkpoints:
    """Checkpoints of one layer, or as many as asked for, made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, **changes: Any) -> Checkpoint:
        folder = self._folder / name
        if not folder.exists():
            make_checkpoint(folder, name.partition(" ")[0], **{"num_hidden_layers": 1, **changes})
        return open_checkpoint(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def compiler_for(capability: tuple[int, int], num_devices: int = 1, *, by_lengths: bool = False) -> TensorRTCompiler:
    target = TensorRTTarget("tensorrt_rtx", capability, None, 2**33, "told", num_devices, by_lengths)
    return TensorRTCompiler(trt, target)


def write(
    compiler: TensorRTCompiler, checkpoint: Checkpoint, folder: Path, *formats: str | None, progress: Any = None
) -> list[bytes]:
    """The plans of a checkpoint in a precision: computation and weights."""
    precision = compiler.precision(checkpoint, *(formats or (None, None)))
    kinds, tied = compiler.formats(precision), checkpoint.model.outline.is_tied
    compiler.write_network(
        folder,
        checkpoint.model,
        lambda share: WeightSource(
            checkpoint.tensors, kinds.matrix, kinds.plain, tied=tied, uniform=kinds.uniform, share=share
        ),
        precision=precision,
        plan=PLAN,
        progress=progress or SilentProgress(),
    )
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def formats_of(plan: bytes) -> tuple[set[bytes], set[bytes]]:
    """Number formats of the plan's constants, and of what it computes with on the device."""
    described = re.findall(rb'region="?([\w-]+)[^\n]*type=(\w+) \}', plan)
    constants = {kind for region, kind in described if b"consts" in region}
    return constants, {kind for region, kind in described if region.startswith(b"devmem")}


@pytest.mark.parametrize("family", [*FAMILIES, "mistral without a window"])
@pytest.mark.parametrize("capability", TARGETS)
def test_plans_every_family_is_built_for_every_target(
    checkpoints: Checkpoints, tmp_path: Path, family: str, capability: tuple[int, int]
) -> None:
    checkpoint = checkpoints.get(family, **({"sliding_window": None} if " " in family else {}))
    (plan,) = write(compiler_for(capability), checkpoint, tmp_path)
    assert plan.startswith(MAGIC)


@pytest.mark.parametrize(
    ("formats", "bits"),
    [((None, None), 16), (("fp16", "int8"), 8), (("bf16", "int8"), 8), (("fp16", "int4"), 4), ((None, "fp8"), 8)],
)
def test_plans_a_plan_grows_with_the_weights_of_its_layers(
    checkpoints: Checkpoints, tmp_path: Path, formats: tuple[str | None, str | None], bits: int
) -> None:
    sizes = []
    for num_layers in (1, 3):
        checkpoint = checkpoints.get(f"llama of {num_layers} layers", num_hidden_layers=num_layers, **WIDE)
        folder = tmp_path / str(num_layers)
        folder.mkdir()
        (plan,) = write(compiler_for(ADA), checkpoint, folder, *formats)
        sizes.append(len(plan))
    # Queries and output, keys and values, and the feed-forward's three.
    num_values = 512 * (2 * 512 + 2 * 128 + 3 * 4096)
    least = 2 * num_values * bits // 8
    assert least <= sizes[1] - sizes[0] < 1.5 * least


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize("capability", TARGETS)
def test_plans_attention_may_be_told_lengths(
    checkpoints: Checkpoints, tmp_path: Path, compute: str, capability: tuple[int, int]
) -> None:
    (plan,) = write(compiler_for(capability, by_lengths=True), checkpoints.get("llama"), tmp_path, compute, None)
    assert plan.startswith(MAGIC)


@pytest.mark.parametrize(
    "formats", [("fp16", None), ("fp16", "int8"), ("fp16", "int4"), ("bf16", "int8"), ("bf16", "int4")]
)
@pytest.mark.parametrize("capability", TARGETS)
def test_plans_weights_are_kept_in_their_format(
    checkpoints: Checkpoints, tmp_path: Path, formats: tuple[str, str | None], capability: tuple[int, int]
) -> None:
    (plan,) = write(compiler_for(capability), checkpoints.get("llama"), tmp_path, *formats)
    constants, computed = formats_of(plan)
    assert {"fp16": b"half", "bf16": b"bf16"}[formats[0]] in computed
    assert formats[1] is None or formats[1].encode() in constants


@pytest.mark.parametrize("capability", [ADA, BLACKWELL])
def test_plans_products_in_float8_are_computed_in_float8(
    checkpoints: Checkpoints, tmp_path: Path, capability: tuple[int, int]
) -> None:
    (plan,) = write(compiler_for(capability), checkpoints.get("llama"), tmp_path, None, "fp8")
    constants, computed = formats_of(plan)
    assert b"fp8_e4m3" in constants
    assert b"fp8_e4m3" in computed


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
def test_plans_tied_embeddings_are_looked_up_where_the_head_is_quantized(
    checkpoints: Checkpoints, tmp_path: Path, weights: str
) -> None:
    checkpoint = checkpoints.get("qwen2")
    assert checkpoint.model.outline.is_tied
    (plan,) = write(compiler_for(ADA), checkpoint, tmp_path, None, weights)
    assert plan.startswith(MAGIC)


def test_plans_gpus_before_ampere_compute_in_fp16(checkpoints: Checkpoints, tmp_path: Path) -> None:
    compiler, checkpoint = compiler_for(TURING), checkpoints.get("llama")
    assert compiler.precision(checkpoint, None, None).compute == "fp16"
    (plan,) = write(compiler, checkpoint, tmp_path)
    assert plan.startswith(MAGIC)
    with pytest.raises(BuildError, match="--precision bf16: sm_75"):
        compiler.precision(checkpoint, "bf16", None)


@pytest.mark.parametrize(
    ("capability", "formats", "words"),
    [
        (AMPERE, (None, "fp8"), "--weights fp8: sm_80 .* sm_89"),
        ((8, 6), (None, "fp8"), "--weights fp8: sm_86"),
        (ADA, ("fp16", "fp8"), "--precision bf16"),
        (TURING, ("fp16", "int4"), "--weights int4: sm_75 .* sm_80; use int8"),
        (ADA, ("fp32", None), "--precision fp32: .*; --engine openvino computes in fp32"),
        (ADA, ("bf16", "fp16"), "--weights fp16: .* bf16"),
    ],
)
def test_plans_formats_that_a_target_does_not_know_are_refused(
    checkpoints: Checkpoints, capability: tuple[int, int], formats: tuple[str | None, str | None], words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        compiler_for(capability).precision(checkpoints.get("llama"), *formats)


def test_plans_half_precision_checkpoints_are_computed_as_they_are(checkpoints: Checkpoints) -> None:
    compiler = compiler_for(ADA)
    assert compiler.precision(checkpoints.get("llama half", dtype=torch.float16), None, None).compute == "fp16"
    assert compiler.precision(checkpoints.get("llama"), None, None).compute == "bf16"


def test_plans_targets_that_cannot_be_built_for_elsewhere_are_refused_with_those_that_can() -> None:
    with pytest.raises(BuildError, match=r"builds for .*8\.9.*12\.0.*, not 9\.0"):
        compiler_for((9, 0))


def test_plans_attention_without_kernels_is_refused_before_any_weight_is_read(checkpoints: Checkpoints) -> None:
    compiler, wide = compiler_for(ADA), checkpoints.get("llama of wide heads", head_dim=512)
    precision = compiler.precision(wide, None, None)
    with pytest.raises(CheckpointError, match=r"head_dim = 512.*sm_89.*not supported by a dedicated kernel"):
        compiler.plan(wide, precision, WANTED)
    # TensorRT is none the worse for it.
    compiler.plan(checkpoints.get("llama"), precision, WANTED)


def test_plans_attention_is_refused_with_the_heads_of_each_device(checkpoints: Checkpoints) -> None:
    wide = checkpoints.get("llama of wide heads, 8", head_dim=512, num_attention_heads=8, num_key_value_heads=4)
    compiler = compiler_for(ADA, num_devices=2)
    with pytest.raises(
        CheckpointError,
        match=r"num_attention_heads = 8, num_key_value_heads = 4, 4 and 2 on each of --tensor-parallel 2: ",
    ):
        compiler.plan(wide, compiler.precision(wide, None, None), WANTED)


def test_plans_another_failure_of_the_probe_is_not_laid_to_the_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, checkpoint = compiler_for(ADA), checkpoints.get("llama")
    precision = compiler.precision(checkpoint, None, None)

    def full(*_: Any) -> None:
        raise BuildError("probe.plan: cannot be written: No space left on device")

    monkeypatch.setattr(NetworkCompiler, "compile", full)
    with pytest.raises(BuildError, match=r"^probe\.plan: cannot be written"):
        compiler.plan(checkpoint, precision, WANTED)


def test_plans_devices_that_cannot_share_are_refused() -> None:
    with pytest.raises(BuildError, match=r"--tensor-parallel 2: sm_75 .* sm_80"):
        compiler_for(TURING, num_devices=2)


def test_plans_slots_begin_where_the_gpu_can_read_them(checkpoints: Checkpoints) -> None:
    compiler, checkpoint = compiler_for(ADA), checkpoints.get("llama")
    layers = checkpoint.model.outline.layers
    row_bytes = layers[0].num_kv_heads * layers[0].head_dim * 2
    for max_seq_len in (100, 127, 128, 129):
        plan = compiler.plan(
            checkpoint, compiler.precision(checkpoint, None, None), LimitsRequest(4, 64, max_seq_len=max_seq_len)
        )
        assert plan.max_seq_len == max_seq_len <= plan.block_size
        assert (plan.block_size + 1) * row_bytes % 256 == 0
        assert plan.block_bytes == 2 * len(layers) * (plan.block_size + 1) * row_bytes


class Watched:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.reports: list[int] = []

    def phase(self, name: str, total: int, *, in_bytes: bool = True) -> None:
        self.phases.append((name, total))
        self.reports.clear()

    def reached(self, done: int) -> None:
        self.reports.append(done)


def test_plans_a_build_says_how_far_it_is(checkpoints: Checkpoints, tmp_path: Path) -> None:
    watched = Watched()
    write(compiler_for(ADA), checkpoints.get("llama"), tmp_path, progress=watched)
    (phase,) = watched.phases
    assert phase == ("compiling the network", 1000)
    assert watched.reports == sorted(watched.reports)
    assert len(set(watched.reports)) > 20
    assert watched.reports[-1] == 1000


def test_plans_phases_within_phases_make_one_share() -> None:
    shares = NestedShares()
    shares.begin("build", None, 4)
    assert shares.step("build", 1) == 0.25
    shares.begin("optimize", "build", 2)
    assert shares.step("optimize", 1) == 0.375
    shares.begin("time", "optimize", 5)
    assert shares.step("time", 1) == pytest.approx(0.4)
    assert shares.finish("time") == 0.5
    shares.begin("optimize", "build", 2)
    assert shares.step("optimize", 1) == 0.5  # the same again, which it never goes back for
    assert shares.finish("optimize") == 0.5
    assert shares.step("unknown", 3) == 0.5
    assert shares.finish("build") == 1


def test_plans_each_device_has_a_plan_of_its_share(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints.get("llama of many heads", num_attention_heads=8, num_key_value_heads=4, head_dim=16)
    first, second = write(compiler_for(ADA, num_devices=2), checkpoint, tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["network.0.plan", "network.1.plan"]
    assert first.startswith(MAGIC)
    assert second.startswith(MAGIC)
    assert first != second
