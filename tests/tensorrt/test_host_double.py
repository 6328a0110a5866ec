"""The double of the GPU finds what a real one answers with undefined behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.gpu.device import Device
from trident_ensemble.contract.errors import EngineError


@pytest.fixture
def device() -> Iterator[Device]:
    with installed():
        yield Device(0)


def test_host_double_a_result_is_there_after_the_wait_and_not_before(device: Device) -> None:
    address = device.allocate(256)
    source, target = device.pinned(256), device.pinned(256)
    source[...] = 7
    target[...] = 0
    device.upload(address, source)
    device.download(target, address)
    assert not target.any()
    device.synchronize()
    assert (target == 7).all()


def test_host_double_pinned_memory_that_is_overwritten_too_soon_is_what_arrives(device: Device) -> None:
    address, source, target = device.allocate(256), device.pinned(256), np.zeros(256, np.uint8)
    source[...] = 1
    device.upload(address, source)
    source[...] = 2
    device.download(target, address)
    device.synchronize()
    assert (target == 2).all()


def test_host_double_pageable_memory_is_read_before_the_call_returns(device: Device) -> None:
    address, source, target = device.allocate(256), np.ones(256, np.uint8), np.zeros(256, np.uint8)
    device.upload(address, source)
    source[...] = 2
    device.download(target, address)
    device.synchronize()
    assert (target == 1).all()


def test_host_double_fresh_memory_is_not_a_number(device: Device) -> None:
    address, target = device.allocate(256), np.zeros(64, np.float32)
    device.download(target, address)
    device.synchronize()
    assert np.isnan(target).all()


Wrong = Callable[[Device, int], Any]
FAULTS: dict[str, Wrong] = {
    "one byte too many": lambda device, place: device.zero(place, 257),
    "before the beginning": lambda device, place: device.zero(place - 1, 2),
    "memory of the host": lambda device, _: device.zero(device.pinned(256).ctypes.data, 256),
    "rows beyond the end": lambda device, place: device.copy_2d(place, place + 16, 128, 16, 3),
    "an overlapping copy": lambda device, place: device.copy(place, place + 8, 16),
}


@pytest.mark.parametrize("name", FAULTS)
def test_host_double_memory_that_is_not_there_loses_the_gpu(name: str, device: Device) -> None:
    place = device.allocate(256)
    FAULTS[name](device, place)
    with pytest.raises(EngineError, match="cudaStreamSynchronize failed: IllegalAddress"):
        device.synchronize()
    with pytest.raises(EngineError, match="cudaMalloc failed: IllegalAddress"):
        device.allocate(1)


def test_host_double_memory_that_was_freed_is_not_there(device: Device) -> None:
    place = device.allocate(256)
    graph = device.capture(lambda: device.zero(place, 256))
    device.launch(graph)
    device.synchronize()
    device.free(place)
    device.launch(graph)
    with pytest.raises(EngineError, match="IllegalAddress"):
        device.synchronize()


def test_host_double_copies_in_the_wrong_direction_are_refused(device: Device) -> None:
    place, host = device.allocate(256), device.pinned(256)
    with pytest.raises(EngineError, match="InvalidValue"):
        device.copy(place, host.ctypes.data, 16)
    with pytest.raises(EngineError, match="InvalidValue"):
        device.upload(host.ctypes.data, host)


def test_host_double_what_is_captured_runs_when_it_is_launched_and_as_often(device: Device) -> None:
    place, counter = device.allocate(256), np.zeros(1, np.int64)
    graph = device.capture(lambda: GPUS.enqueue(device.stream, lambda: counter.put(0, counter[0] + 1)))
    device.synchronize()
    assert counter[0] == 0
    for _ in range(3):
        device.launch(graph)
    device.synchronize()
    assert counter[0] == 3
    device.free_graph(graph)
    device.free(place)
    device.close()
    assert GPUS.leaks() == []


def test_host_double_waiting_spoils_a_capture_and_the_stream_runs_again_after_it(device: Device) -> None:
    place, target = device.allocate(256), np.ones(256, np.uint8)
    with pytest.raises(EngineError, match="cudaStreamSynchronize failed: StreamCaptureUnsupported"):
        device.capture(device.synchronize)
    device.zero(place, 256)
    device.download(target, place)
    device.synchronize()
    assert not target.any()
