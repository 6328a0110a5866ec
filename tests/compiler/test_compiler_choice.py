"""Which compiler is chosen: by what was asked for, and by what the machine has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from enum import IntEnum
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest

from tests.checkpoints import make_checkpoint
from trident_compiler import compiler_choice, gpu_choice
from trident_compiler.compiler_choice import choose_compiler
from trident_compiler.gpu_choice import BuildRequest
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest, TakenMemory
from trident_compiler.tensorrt import gpu
from trident_compiler.tensorrt.builder import NetworkCompiler
from trident_compiler.tensorrt.gpu import Gpu, Gpus, gpus_at_hand
from trident_ensemble.contract.errors import BuildError

rtx: Any = pytest.importorskip("tensorrt_rtx_bindings")

ADA, HOPPER = Gpu(0, (8, 9)), Gpu(0, (9, 0))
NONE = "no NVIDIA GPU found"


class FullTensorRT(ModuleType):
    """The RTX module as TensorRT: without the targets that only the former names."""

    __version__ = "11.4.0"

    def __getattr__(self, name: str) -> Any:
        if name == "ComputeCapability":
            raise AttributeError(name)
        return getattr(rtx, name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine(gpus, modules)`: what is there; GPU n has n + 1 GiB free, of 8 GiB."""

    def has(gpus: tuple[Gpu, ...], *modules: str) -> None:
        monkeypatch.setattr(compiler_choice, "gpus_at_hand", lambda: Gpus(gpus, "" if gpus else NONE))
        monkeypatch.setattr(gpu_choice, "free_bytes", lambda ordinal: (ordinal + 1) << 30)
        monkeypatch.setattr(gpu_choice, "total_bytes", lambda _: 8 << 30)
        monkeypatch.setattr(gpu, "select", lambda _: None)
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            there = {"tensorrt": FullTensorRT("tensorrt")}.get(name, rtx) if name in modules else None
            monkeypatch.setitem(sys.modules, name, there)

    return has


def chosen(**asked: Any) -> tuple[str, str, str]:
    choice = choose_compiler(BuildRequest(**asked))
    return choice.compiler.compiler.name, choice.compiler.compiler.target, choice.why


def test_compiler_choice_cpus_are_for_openvino(machine: Any) -> None:
    machine((), "tensorrt_rtx_bindings")
    assert chosen() == ("openvino", "cpu", "no NVIDIA GPU found")
    machine((ADA,))
    name, _, why = chosen()
    assert name == "openvino"
    assert "no TensorRT" in why
    assert "pip install" in why


def test_compiler_choice_gpus_are_for_tensorrt_and_rtx_is_second(machine: Any) -> None:
    machine((HOPPER,), "tensorrt", "tensorrt_rtx")
    assert chosen() == ("tensorrt", "sm_90", "this machine's GPU is sm_90")
    machine((ADA,), "tensorrt_rtx_bindings")
    assert chosen()[:2] == ("tensorrt_rtx", "sm_89")
    assert chosen(engine="openvino") == ("openvino", "cpu", "as asked")


def test_compiler_choice_a_gpu_elsewhere_is_for_rtx_and_its_memory_is_told(machine: Any) -> None:
    machine((HOPPER,), "tensorrt", "tensorrt_rtx_bindings")
    assert chosen(capability="8.6", gpu_memory=1 << 30)[:2] == ("tensorrt_rtx", "sm_86")
    with pytest.raises(BuildError, match=r"--gpu-memory: .*24GiB"):
        chosen(capability="8.6")
    compiler = choose_compiler(BuildRequest(capability="8.6", gpu_memory=1 << 30)).compiler
    assert compiler.memory == "of the GPU, as --gpu-memory says"
    machine((ADA,), "tensorrt_rtx_bindings")
    assert choose_compiler(BuildRequest(capability="8.9")).compiler.memory == "free on GPU 0"


@pytest.mark.parametrize(
    ("gpus", "modules", "asked", "words"),
    [
        ((), ("tensorrt",), {"engine": "tensorrt"}, "no NVIDIA GPU .* --compute-capability 8.9"),
        ((ADA,), (), {"engine": "tensorrt"}, "--engine tensorrt: it is not installed; pip install"),
        ((ADA,), ("tensorrt",), {"capability": "8.6", "gpu_memory": 1}, "--compute-capability: TensorRT-RTX .*pip"),
        ((), ("tensorrt_rtx",), {"capability": "89", "gpu_memory": 1}, "--compute-capability: '89'"),
        ((), ("tensorrt_rtx",), {"capability": "9" * 5000 + ".0", "gpu_memory": 1}, "--compute-capability: '999"),
        ((), ("tensorrt_rtx",), {"capability": "9.0", "gpu_memory": 1}, r"8\.9, .*not 9\.0"),
        ((), (), {"gpus": (0,)}, r"--gpu: .*OpenVINO's.*no NVIDIA GPU found"),
        ((), (), {"gpu_memory": 1}, "--gpu-memory: .*--engine tensorrt"),
        ((), (), {"engine": "openvino", "capability": "8.9"}, r"--compute-capability: .*as asked"),
        ((), (), {"tensor_parallel": 2}, "--tensor-parallel: .*OpenVINO's"),
        ((), (), {"engine": "cuda"}, "--engine cuda: no NVIDIA GPU .* --compute-capability 8.9"),
        ((), (), {"engine": "cuda", "capability": "9.0"}, "--gpu-memory: 1 such GPUs are wanted and 0 are here"),
        ((ADA,), (), {"engine": "cuda", "tensor_parallel": 2}, "--tensor-parallel 2: .* one GPU; .*--engine tensorrt"),
        ((ADA,), (), {"engine": "cuda", "attention_lengths": True}, "--attention lengths: there are no slots"),
        ((), (), {"fp8_cache": True}, "--kv-cache-precision fp8: .*OpenVINO's.*no NVIDIA GPU.*choose --engine cuda"),
        ((ADA,), ("tensorrt",), {"fp8_cache": True}, "--kv-cache-precision fp8: .*TensorRT's, whose slots"),
        (
            (),
            (),
            {"engine": "cuda", "capability": "7.5", "gpu_memory": 1},
            r"capability 7\.5; there are for 8\.0 .A100",
        ),
        ((), ("tensorrt_rtx",), {"capability": "9.0", "gpu_memory": 1}, "choose --engine cuda"),
        ((), (), {"engine": "openvino", "gpu_memory": 1}, "--gpu-memory: .*--engine tensorrt or cuda"),
        ((ADA,), ("tensorrt",), {"gpus": (1,)}, "--gpu: there is no GPU 1; this machine has 1"),
        ((ADA,), ("tensorrt",), {"tensor_parallel": 2}, "--gpu-memory: 2 such GPUs are wanted and 1 are here"),
        ((ADA,), ("tensorrt",), {"tensor_parallel": 0}, "--tensor-parallel: must be at least 1, not 0"),
        ((), (), {"engine": "openvino", "tensor_parallel": -1}, "--tensor-parallel: must be at least 1, not -1"),
        ((), ("tensorrt_rtx",), {"capability": "7.5", "gpu_memory": 1, "tensor_parallel": 2}, "sm_75 .* sm_80"),
        ((HOPPER,), ("tensorrt_rtx",), {"capability": "8.6", "gpus": (0,)}, "--gpu: GPU 0 is sm_90.*--gpu-memory"),
        ((ADA,), ("tensorrt",), {"gpus": (0,), "tensor_parallel": 2}, "--gpu: names 1 GPUs for --tensor-parallel 2"),
        (
            (ADA, Gpu(1, (8, 6))),
            ("tensorrt",),
            {"gpus": (0, 1), "tensor_parallel": 2},
            "--gpu: GPU 1 is sm_86, the engine would be for sm_89",
        ),
    ],
)
def test_compiler_choice_what_cannot_be_built_here_is_refused(
    machine: Any, gpus: tuple[Gpu, ...], modules: tuple[str, ...], asked: dict[str, Any], words: str
) -> None:
    machine(gpus, *modules)
    with pytest.raises(BuildError, match=words) as refusal:
        chosen(**asked)
    assert refusal.type is BuildError, "there is no plan yet"


def test_compiler_choice_kernels_of_our_own_are_built_where_they_are_asked_for(machine: Any) -> None:
    pytest.importorskip("triton")
    machine((), "tensorrt_rtx")
    choice = choose_compiler(BuildRequest(engine="cuda", capability="9.0", gpu_memory=5 << 30, gpus=(3,)))
    compiler: Any = choice.compiler
    assert (compiler.compiler.name, compiler.compiler.target, compiler.num_devices) == ("cuda", "sm_90", 1)
    assert (choice.why, choice.gpus, compiler.memory) == ("as asked", (3,), "of the GPU, as --gpu-memory says")
    machine((ADA, Gpu(1, (9, 0))))
    choice = choose_compiler(BuildRequest(engine="cuda", capability="9.0"))
    assert (choice.gpus, choice.compiler.memory) == ((1,), "free on GPU 1")
    assert chosen(engine="cuda") == ("cuda", "sm_89", "as asked")
    machine((), "tensorrt_rtx")
    assert chosen(capability="8.9", gpu_memory=1)[0] == "tensorrt_rtx", "unless it is asked for"


def test_compiler_choice_triton_is_asked_for_where_it_is_missing(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(())
    monkeypatch.setattr("importlib.metadata.version", Mock(side_effect=PackageNotFoundError("triton")))
    with pytest.raises(BuildError, match=r"--engine cuda: .*not installed: pip install 'trident-llm\[cuda\]'"):
        chosen(engine="cuda", capability="9.0", gpu_memory=1)


def test_compiler_choice_the_least_free_gpu_is_planned_for(machine: Any, tmp_path: Path) -> None:
    machine((ADA, Gpu(1, (8, 9)), Gpu(2, (8, 9))), "tensorrt_rtx")
    two = choose_compiler(BuildRequest(gpus=(2, 1), tensor_parallel=2)).compiler
    assert two.num_devices == 2
    assert two.memory == "free on GPU 2 and on GPU 1"
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", "llama", **heads))
    plan = two.plan(checkpoint, two.precision(checkpoint, None, None), LimitsRequest())
    assert plan.free_bytes == 2 << 30


@pytest.mark.parametrize(
    ("taken", "gpu_memory", "planned"),
    [({2: 6}, None, 2), ({2: 7}, None, 1), ({2: 9}, None, 0), ({0: 8}, None, 2), ({2: 1}, 4, 3), ({2: 6}, 4, 0)],
)
def test_compiler_choice_the_memory_of_others_is_taken_from_a_gpu_once(
    machine: Any, taken: dict[int, int], gpu_memory: int | None, planned: int
) -> None:
    """Whoever runs has taken it from what is free already; what --gpu-memory says lacks nothing."""
    machine((ADA, Gpu(1, (8, 9)), Gpu(2, (8, 9))), "tensorrt_rtx")
    request = BuildRequest(
        gpus=(2, 1),
        tensor_parallel=2,
        capability=None if gpu_memory is None else "8.9",
        gpu_memory=None if gpu_memory is None else gpu_memory << 30,
        taken=TakenMemory(0, {gpu: num_bytes << 30 for gpu, num_bytes in taken.items()}),
    )
    compiler: Any = choose_compiler(request).compiler
    assert compiler._target.free_bytes == planned << 30


def test_compiler_choice_the_gpus_of_the_kind_are_found_wherever_they_are(machine: Any) -> None:
    machine((HOPPER, Gpu(1, (8, 9)), Gpu(2, (9, 0)), Gpu(3, (8, 9))), "tensorrt", "tensorrt_rtx")
    choice = choose_compiler(BuildRequest(capability="8.9"))
    assert (choice.gpus, choice.compiler.memory) == ((1,), "free on GPU 1")
    assert choice.compiler.compiler.name == "tensorrt", "the GPU is here, so that the better compiler can be used"
    assert choose_compiler(BuildRequest(capability="8.9", tensor_parallel=2)).gpus == (1, 3)
    assert choose_compiler(BuildRequest(tensor_parallel=2)).gpus == (0, 2)
    machine((HOPPER, Gpu(1, (8, 9))), "tensorrt_rtx")
    assert chosen(capability="8.9")[0] == "tensorrt_rtx"


def test_compiler_choice_of_equal_gpus_the_named_one_builds(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((ADA, Gpu(1, (8, 9))), "tensorrt")
    selected: list[int] = []
    monkeypatch.setattr(gpu, "select", selected.append)
    for memory in (None, 1 << 30):
        assert choose_compiler(BuildRequest(capability="8.9", gpus=(1,), gpu_memory=memory)).gpus == (1,)
    assert selected == [1, 1]


def test_compiler_choice_gpus_elsewhere_are_named_for_serving_alone(machine: Any) -> None:
    machine((HOPPER,), "tensorrt", "tensorrt_rtx_bindings")
    for gpus in ((0,), (5,)):
        choice = choose_compiler(BuildRequest(capability="8.6", gpu_memory=1 << 30, gpus=gpus))
        assert choice.compiler.compiler.target == "sm_86"
        assert choice.gpus == gpus
    two = choose_compiler(BuildRequest(capability="8.6", gpu_memory=1 << 30, tensor_parallel=2))
    assert two.gpus == (0, 1)
    assert choose_compiler(BuildRequest(engine="openvino")).gpus == ()


def test_compiler_choice_nothing_is_asked_of_gpus_for_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> Gpus:
        raise AssertionError

    monkeypatch.setattr(compiler_choice, "gpus_at_hand", asked)
    assert chosen(engine="openvino") == ("openvino", "cpu", "as asked")


#: Some of what CUDA answers.
Status = IntEnum(
    "Status",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorSystemNotReady": 802,
    },
)


class Cuda(ModuleType):
    """As much of CUDA as is asked about GPUs; `failing` gives what a call answers instead."""

    cudaError_t = Status  # noqa: N815

    def __init__(self, count: int, driver: int = 13000, **failing: Status) -> None:
        super().__init__("cuda.bindings.runtime")
        names = {"cudaDevAttrComputeCapabilityMajor": 0, "cudaDevAttrComputeCapabilityMinor": 1}
        self.cudaDeviceAttr = type("A", (), names)
        self.selected: list[int] = []
        self._present = 0
        self._answers: dict[str, Callable[..., tuple[Any, ...]]] = {
            "cudaGetDeviceCount": lambda: (count,),
            "cudaDriverGetVersion": lambda: (driver,),
            "cudaDeviceGetAttribute": lambda kind, ordinal: ((8, 6 + 3 * ordinal)[kind],),
            "cudaSetDevice": self._select,
            "cudaMemGetInfo": lambda: ((self._present + 1) << 30, 1 << 40),
            "cudaGetErrorString": lambda status: (f"the words of {status:d}".encode(),),
        }
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("_answers", {}):
            raise AttributeError(name)
        if name in self._failing:
            return lambda *_: (self._failing[name], None)
        return lambda *arguments: (Status.cudaSuccess, *self._answers[name](*arguments))

    def _select(self, ordinal: int) -> tuple[()]:
        self._present = ordinal
        self.selected.append(ordinal)
        return ()


def test_compiler_choice_gpus_are_asked_of_cuda_and_only_the_chosen_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(3)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    assert gpus_at_hand() == Gpus((Gpu(0, (8, 6)), Gpu(1, (8, 9)), Gpu(2, (8, 12))))
    assert cuda.selected == []
    assert gpu.free_bytes(1) == 2 << 30
    assert cuda.selected == [1]


@pytest.mark.parametrize("call", ["cudaSetDevice", "cudaMemGetInfo"])
def test_compiler_choice_a_gpu_that_does_not_answer_is_named(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(2, **{call: Status.cudaErrorMemoryAllocation})
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    with pytest.raises(BuildError, match=f"GPU 1 cannot be used: {call}: the words of 2"):
        gpu.free_bytes(1)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda(1, cudaDeviceGetAttribute=Status.cudaErrorNoDevice))
    with pytest.raises(BuildError, match="GPU 0 cannot be used: cudaDeviceGetAttribute: the words of 100"):
        gpus_at_hand()


OLD, BUSY = Status.cudaErrorInsufficientDriver, Status.cudaErrorSystemNotReady


@pytest.mark.parametrize(
    ("cuda", "has_node", "why"),
    [
        (None, False, NONE),
        (None, True, "there is an NVIDIA GPU, but cuda-python cannot be imported"),
        (Cuda(0), True, NONE),
        (Cuda(0, cudaGetDeviceCount=Status.cudaErrorNoDevice), True, NONE),
        (Cuda(0, driver=0, cudaGetDeviceCount=OLD), False, NONE),
        (Cuda(0, driver=0, cudaGetDeviceCount=OLD), True, "driver is too old for CUDA 13, which takes driver 580"),
        (Cuda(0, driver=12040, cudaGetDeviceCount=OLD), False, "driver 580 or later"),
        (Cuda(0, cudaGetDeviceCount=BUSY), True, "no NVIDIA GPU can be used: cudaGetDeviceCount: the words of 802"),
    ],
)
def test_compiler_choice_why_there_is_no_gpu_is_said(
    cuda: Cuda | None, has_node: bool, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setattr(gpu, "_DEVICE_NODE", tmp_path if has_node else tmp_path / "none")
    name, _, said = chosen()
    assert name == "openvino"
    assert why in said
    with pytest.raises(BuildError, match=f"--engine tensorrt: .*{why}.*--compute-capability 8.9"):
        chosen(engine="tensorrt")


def test_compiler_choice_the_builder_is_made_for_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(3)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    present: list[int] = []

    class Watched(FullTensorRT):
        def Builder(self, logger: Any) -> Any:  # noqa: N802
            present.append(cuda.selected[-1])
            return rtx.Builder(logger)

    NetworkCompiler(Watched("tensorrt"), (8, 9), 1)
    assert present == [1]


@pytest.mark.slow
def test_compiler_choice_openvino_needs_no_tensorrt_and_tensorrt_no_openvino() -> None:
    program = (
        "import sys; sys.modules['{absent}'] = None\n"
        "import trident_tools.build, trident_compiler.engine_builder\n"
        "from trident_compiler.compiler_choice import choose_compiler\n"
        "from trident_compiler.gpu_choice import BuildRequest\n"
        "print(choose_compiler(BuildRequest({asked})).compiler.compiler.name)\n"
    )
    for absent, asked, name in (
        ("tensorrt_rtx_bindings", "engine='openvino'", "openvino"),
        ("openvino", "engine='tensorrt', capability='8.9', gpu_memory=1", "tensorrt_rtx"),
    ):
        command = [sys.executable, "-c", program.format(absent=absent, asked=asked)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert outcome.stdout.split() == [name], outcome.stderr
