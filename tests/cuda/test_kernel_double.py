"""The double of CUDA's driver takes what cuda-python takes, and finds what a GPU answers with undefined behaviour."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.cuda import twins
from tests.cuda.calls import Call
from tests.tensorrt.double import faults
from tests.tensorrt.double.cubins import Cubin
from tests.tensorrt.double.cuda.bindings import driver
from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.gpu.device import Device
from trident_ensemble.contract.errors import EngineError

bindings: Any = pytest.importorskip("cuda.bindings.driver")

PARAMETERS = (("out", "*fp32"), ("x", "*fp32"), ("factor", "fp32"), ("count", "i32"))
KINDS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
CUBIN = Cubin((8, 9), "times", "made_up.times", 128, 60000, PARAMETERS, {"WIDTH": 4})
GRID, THREADS = (2, 1, 1), (128, 1, 1)


def times(call: Call) -> None:
    """Multiply `count` rows."""
    shape = (call.number("count"), int(call.constants["WIDTH"]))
    call.store("out", call.read("x", shape) * call.number("factor"))


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = twins.find
    monkeypatch.setattr(twins, "find", lambda name: times if name == "made_up.times" else found(name))


@pytest.fixture
def device() -> Iterator[Device]:
    with installed():
        yield Device(0)


@pytest.fixture
def kernel(device: Device) -> int:  # noqa: ARG001 (the machine must be there)
    _, library = driver.cuLibraryLoadData(CUBIN.save(), None, None, 0, None, None, 0)
    _, kernel = driver.cuLibraryGetKernel(library, b"times")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert driver.cuKernelSetAttribute(attribute, CUBIN.shared_bytes, kernel, 0)[0] == 0
    return int(kernel)


def launch(kernel: int, device: Device, *values: Any, grid: tuple[int, int, int] = GRID) -> Any:
    given = ((*values, 0, 0), KINDS)
    return driver.cuLaunchKernel(kernel, *grid, *THREADS, CUBIN.shared_bytes, device.stream, given, 0)[0]


def filled(device: Device, numbers: list[float]) -> int:
    address = device.allocate(4 * len(numbers))
    device.upload(address, np.array(numbers, np.float32))
    return address


def test_kernel_double_a_launch_runs_the_twin_late_and_again_in_a_graph(device: Device, kernel: int) -> None:
    x, out, found = filled(device, [1, 2, 3, 4] * 2), device.allocate(32), device.pinned(32).view(np.float32)
    found[...] = 0
    assert launch(kernel, device, out, x, 2.0, 2) == 0
    device.download(found, out)
    assert not found.any()
    device.synchronize()
    assert found.tolist() == [2, 4, 6, 8] * 2

    def again() -> None:
        launch(kernel, device, x, x, 3.0, 1)
        device.download(found, x)

    graph = device.capture(again)
    for _ in range(2):
        device.launch(graph)
    device.synchronize()
    assert found.tolist() == [9, 18, 27, 36, 1, 2, 3, 4]


def test_kernel_double_arguments_may_be_addresses_of_numbers(device: Device, kernel: int) -> None:
    x, out, found = filled(device, [1] * 4), device.allocate(16), device.pinned(16).view(np.float32)
    given: tuple[Any, ...] = (out, x, 0.5, 1, 0, 0)
    kept: list[Any] = [kind(value) for kind, value in zip(KINDS, given, strict=True)]
    places = np.array([ctypes.addressof(number) for number in kept], np.uint64)
    arguments = places.ctypes.data
    driver.cuLaunchKernel(kernel, 1, 1, 1, *THREADS, CUBIN.shared_bytes, device.stream, arguments, 0)
    kept[2].value = 7.0
    device.download(found, out)
    device.synchronize()
    assert found.tolist() == [0.5] * 4


Values = tuple[tuple[Any, ...], tuple[Any, ...]]
#: Two numbers, as cuda-python is given them.
FORMS: dict[str, Values] = {
    "numbers": ((16, 2.0), (ctypes.c_void_p, ctypes.c_float)),
    "numbers of ctypes": ((ctypes.c_void_p(16), ctypes.c_float(2)), (ctypes.c_void_p, ctypes.c_float)),
    "a whole number for a float": ((16, 2), (ctypes.c_void_p, ctypes.c_float)),
    "too few types": ((16, 2.0), (ctypes.c_void_p,)),
    "an integer of numpy": ((np.int64(16), 2.0), (ctypes.c_void_p, ctypes.c_float)),
    "a float of numpy": ((16, np.float32(2)), (ctypes.c_void_p, ctypes.c_float)),
    "a negative address": ((-16, 2.0), (ctypes.c_void_p, ctypes.c_float)),
    "nothing": ((None, 2.0), (ctypes.c_void_p, ctypes.c_float)),
}


@pytest.mark.parametrize("form", FORMS)
def test_kernel_double_takes_the_arguments_that_cuda_python_takes(form: str, device: Device) -> None:
    (values, kinds), own = FORMS[form], (ctypes.c_void_p, ctypes.c_void_p)
    cubin = Cubin((8, 9), "two", "made_up.times", 32, 0, (("a", "*fp32"), ("b", "fp32")), {})
    _, library = driver.cuLibraryLoadData(cubin.save(), [], [], 0, [], [], 0)

    def call(module: Any, kernel: int) -> type[BaseException] | None:
        try:
            module.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, device.stream, ((*values, 0, 0), (*kinds, *own)), 0)
        except (TypeError, OverflowError) as error:
            return type(error)
        except RuntimeError:  # there is no driver on this machine: the arguments were taken
            return None
        return None

    assert call(driver, library) is call(bindings, 1)


WRONG: dict[str, Callable[[int, int], tuple[Any, ...]]] = {
    "no blocks": lambda kernel, stream: (kernel, 0, 1, 1, *THREADS, 60000, stream),
    "too many blocks": lambda kernel, stream: (kernel, 1, 65536, 1, *THREADS, 60000, stream),
    "other threads": lambda kernel, stream: (kernel, *GRID, 64, 1, 1, 60000, stream),
    "other shared memory": lambda kernel, stream: (kernel, *GRID, *THREADS, 0, stream),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_kernel_double_refuses_launches_that_cannot_be(wrong: str, device: Device, kernel: int) -> None:
    given = ((0, 0, 1.0, 1, 0, 0), KINDS)
    assert driver.cuLaunchKernel(*WRONG[wrong](kernel, device.stream), given, 0)[0].name == "CUDA_ERROR_INVALID_VALUE"


def test_kernel_double_much_shared_memory_must_be_asked_for(device: Device) -> None:
    _, library = driver.cuLibraryLoadData(CUBIN.save(), [], [], 0, [], [], 0)
    assert launch(library, device, 0, 0, 1.0, 1).name == "CUDA_ERROR_INVALID_VALUE"
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert driver.cuKernelSetAttribute(attribute, 101377, library, 0)[0].name == "CUDA_ERROR_INVALID_VALUE"


@pytest.mark.parametrize(
    ("address", "count", "code"), [(0, 3, "IllegalAddress"), (-16, 1, "IllegalAddress"), (8, 1, "MisalignedAddress")]
)
def test_kernel_double_memory_that_is_not_there_loses_the_gpu(
    address: int, count: int, code: str, device: Device, kernel: int
) -> None:
    x, out = filled(device, [1] * 8), device.allocate(32)
    launch(kernel, device, out, x + address, 1.0, count)
    with pytest.raises(EngineError, match=f"cudaStreamSynchronize failed: {code}"):
        device.synchronize()


def test_kernel_double_a_kernel_that_was_unloaded_does_not_run(device: Device, kernel: int) -> None:
    x, out = filled(device, [1] * 8), device.allocate(32)
    launch(kernel, device, out, x, 1.0, 2)
    graph = device.capture(lambda: launch(kernel, device, out, x, 1.0, 2))
    assert f"library {kernel}" in GPUS.leaks()
    driver.cuLibraryUnload(kernel)
    device.launch(graph)
    with pytest.raises(EngineError, match="LaunchFailure"):
        device.synchronize()
    assert not any("library" in leak for leak in GPUS.leaks())


def test_kernel_double_the_first_launch_cannot_be_captured(device: Device, kernel: int) -> None:
    x, out, found = filled(device, [1] * 8), device.allocate(32), []
    with pytest.raises(EngineError, match="cudaStreamEndCapture"):
        device.capture(lambda: found.append(launch(kernel, device, out, x, 1.0, 2)))
    assert [status.name for status in found] == ["CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"]


def test_kernel_double_a_kernel_that_was_loaded_can_be_captured_at_once(device: Device, kernel: int) -> None:
    x, out, found = filled(device, [1] * 8), device.allocate(32), []
    (status, function) = driver.cuKernelGetFunction(kernel)
    assert not status
    with pytest.raises(EngineError, match="cudaStreamEndCapture"):
        device.capture(lambda: found.append(driver.cuFuncLoad(function)[0].name))
    assert found == ["CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"]
    assert [status.name for status in driver.cuFuncLoad(function)] == ["CUDA_SUCCESS"]
    device.free_graph(device.capture(lambda: found.append(launch(kernel, device, out, x, 1.0, 2))))
    assert not found[-1]


def test_kernel_double_kernels_for_other_gpus_are_not_loaded(device: Device) -> None:
    assert device.capability == CUBIN.capability
    other = Cubin(**{**CUBIN.__dict__, "capability": (9, 0)})
    for image, code in ((other.save(), "CUDA_ERROR_NO_BINARY_FOR_GPU"), (b"\x7fELF", "CUDA_ERROR_INVALID_IMAGE")):
        status, library = driver.cuLibraryLoadData(image, [], [], 0, [], [], 0)
        assert (status.name, library) == (code, None)


def test_kernel_double_fails_when_it_is_told_to(device: Device, kernel: int) -> None:
    x, out = filled(device, [1] * 8), device.allocate(32)
    faults.order("cuLaunchKernel", nth=2)
    assert [launch(kernel, device, out, x, 1.0, 2).value for _ in range(3)] == [0, 1, 0]
    faults.order("made_up.times", code=faults.LOST)
    with pytest.raises(EngineError, match="IllegalAddress"):
        device.synchronize()
