"""Which compiler is chosen: by what was asked for, and by what the machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint
from trident_compiler import compiler_choice, gpu
from trident_compiler.checkpoint import open_checkpoint
from trident_compiler.compiler_choice import Asked, choose_compiler
from trident_compiler.gpu import Gpu, gpus_at_hand
from trident_compiler.plan import Wanted
from trident_ensemble.errors import PlanError

rtx: Any = pytest.importorskip("tensorrt_rtx_bindings")

ADA, HOPPER = Gpu(0, (8, 9), 20 << 30), Gpu(0, (9, 0), 100 << 30)


class FullTensorRT(ModuleType):
    """The RTX module as TensorRT: without the targets that only the former names."""

    __version__ = "11.4.0"

    def __getattr__(self, name: str) -> Any:
        if name == "ComputeCapability":
            raise AttributeError(name)
        return getattr(rtx, name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine(gpus, modules)`: what is there."""

    def has(gpus: tuple[Gpu, ...], *modules: str) -> None:
        monkeypatch.setattr(compiler_choice, "gpus_at_hand", lambda: gpus)
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            there = {"tensorrt": FullTensorRT("tensorrt")}.get(name, rtx) if name in modules else None
            monkeypatch.setitem(sys.modules, name, there)

    return has


def chosen(**asked: Any) -> tuple[str, str, str]:
    choice = choose_compiler(Asked(**asked))
    return choice.compiler.compiler.name, choice.compiler.compiler.target, choice.why


def test_cpus_are_for_openvino(machine: Any) -> None:
    machine((), "tensorrt_rtx_bindings")
    assert chosen() == ("openvino", "cpu", "no NVIDIA GPU found")
    machine((ADA,))
    name, _, why = chosen()
    assert name == "openvino"
    assert "no TensorRT" in why
    assert "pip install" in why


def test_gpus_are_for_tensorrt_and_rtx_is_second(machine: Any) -> None:
    machine((HOPPER,), "tensorrt", "tensorrt_rtx")
    assert chosen() == ("tensorrt", "sm_90", "this machine's GPU is sm_90")
    machine((ADA,), "tensorrt_rtx_bindings")
    assert chosen()[:2] == ("tensorrt_rtx", "sm_89")
    assert chosen(engine="openvino") == ("openvino", "cpu", "as asked")


def test_a_gpu_elsewhere_is_for_rtx_and_its_memory_is_told(machine: Any) -> None:
    machine((HOPPER,), "tensorrt", "tensorrt_rtx_bindings")
    assert chosen(capability="8.6", gpu_memory=1 << 30)[:2] == ("tensorrt_rtx", "sm_86")
    with pytest.raises(PlanError, match=r"--gpu-memory: .*24GiB"):
        chosen(capability="8.6")
    compiler = choose_compiler(Asked(capability="8.6", gpu_memory=1 << 30)).compiler
    assert compiler.memory == "of the GPU, as --gpu-memory says"
    machine((ADA,), "tensorrt_rtx_bindings")
    assert choose_compiler(Asked(capability="8.9")).compiler.memory == "free on GPU 0"


@pytest.mark.parametrize(
    ("gpus", "modules", "asked", "words"),
    [
        ((), ("tensorrt",), {"engine": "tensorrt"}, "no NVIDIA GPU .* --compute-capability 8.9"),
        ((ADA,), (), {"engine": "tensorrt"}, "--engine tensorrt: it is not installed; pip install"),
        ((ADA,), ("tensorrt",), {"capability": "8.6", "gpu_memory": 1}, "--compute-capability: TensorRT-RTX .*pip"),
        ((), ("tensorrt_rtx",), {"capability": "89", "gpu_memory": 1}, "--compute-capability: '89'"),
        ((), ("tensorrt_rtx",), {"capability": "9.0", "gpu_memory": 1}, r"8\.9, .*not 9\.0"),
        ((), (), {"gpus": (0,)}, r"--gpu: .*OpenVINO's.*no NVIDIA GPU found"),
        ((), (), {"gpu_memory": 1}, "--gpu-memory: .*--engine tensorrt"),
        ((), (), {"engine": "openvino", "capability": "8.9"}, r"--compute-capability: .*as asked"),
        ((), (), {"tensor_parallel": 2}, "--tensor-parallel: .*OpenVINO's"),
        ((ADA,), ("tensorrt",), {"gpus": (1,)}, "--gpu: there is no GPU 1; this machine has 1"),
        ((ADA,), ("tensorrt",), {"tensor_parallel": 2}, "--gpu: there is no GPU 1"),
        ((ADA,), ("tensorrt",), {"gpus": (0,), "tensor_parallel": 2}, "--gpu: names 1 GPUs for --tensor-parallel 2"),
        (
            (ADA, Gpu(1, (8, 6), 1)),
            ("tensorrt",),
            {"gpus": (0, 1), "tensor_parallel": 2},
            "--gpu: GPU 1 is sm_86, the engine would be for sm_89",
        ),
    ],
)
def test_what_cannot_be_built_here_is_refused(
    machine: Any, gpus: tuple[Gpu, ...], modules: tuple[str, ...], asked: dict[str, Any], words: str
) -> None:
    machine(gpus, *modules)
    with pytest.raises(PlanError, match=words):
        chosen(**asked)


def test_the_least_free_gpu_is_planned_for(machine: Any, tmp_path: Path) -> None:
    machine((ADA, Gpu(1, (8, 9), 3 << 30), Gpu(2, (8, 9), 5 << 30)), "tensorrt_rtx")
    two = choose_compiler(Asked(gpus=(2, 1), tensor_parallel=2)).compiler
    assert two.num_devices == 2
    assert two.memory == "free on GPU 2 and on GPU 1"
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", "llama", **heads))
    plan = two.plan(checkpoint, two.precision(checkpoint, None, None), Wanted())
    assert plan.free_bytes == 3 << 30


class Cuda(ModuleType):
    """As much of CUDA as is asked about GPUs."""

    def __init__(self, count: int | None) -> None:
        super().__init__("cuda.bindings.runtime")
        self.cudaError_t = type("E", (), {"cudaSuccess": 0})
        names = {"cudaDevAttrComputeCapabilityMajor": 0, "cudaDevAttrComputeCapabilityMinor": 1}
        self.cudaDeviceAttr = type("A", (), names)
        self._count = count
        self._present = 0

    def cudaGetDeviceCount(self) -> tuple[int, int | None]:  # noqa: N802
        return (35, None) if self._count is None else (0, self._count)

    def cudaDeviceGetAttribute(self, kind: int, ordinal: int) -> tuple[int, int]:  # noqa: N802
        return 0, (8, 6 + 3 * ordinal)[kind]

    def cudaSetDevice(self, ordinal: int) -> tuple[int]:  # noqa: N802
        self._present = ordinal
        return (0,)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return 0, (self._present + 1) << 30, 1 << 40


def test_gpus_are_asked_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda(2))
    assert gpus_at_hand() == (Gpu(0, (8, 6), 1 << 30), Gpu(1, (8, 9), 2 << 30))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda(None))
    assert gpus_at_hand() == ()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert gpus_at_hand() == ()
    assert gpu.target((12, 0)) == "sm_120"


def test_openvino_needs_no_tensorrt_and_tensorrt_no_openvino() -> None:
    program = (
        "import sys; sys.modules['{absent}'] = None\n"
        "import trident_tools.build, trident_compiler.engine_builder\n"
        "from trident_compiler.compiler_choice import Asked, choose_compiler\n"
        "print(choose_compiler(Asked({asked})).compiler.compiler.name)\n"
    )
    for absent, asked, name in (
        ("tensorrt_rtx_bindings", "engine='openvino'", "openvino"),
        ("openvino", "engine='tensorrt', capability='8.9', gpu_memory=1", "tensorrt_rtx"),
    ):
        command = [sys.executable, "-c", program.format(absent=absent, asked=asked)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert outcome.stdout.split() == [name], outcome.stderr
