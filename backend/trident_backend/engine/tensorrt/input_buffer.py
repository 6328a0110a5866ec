"""The small inputs of a step on the device: all of them in one upload.

Owns their pinned and their device memory, and their offsets. Never decides what the inputs are: `step_inputs` does. The
decode call's inputs always lie at the same addresses, where a captured graph reads them.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.protocol import Int32Array
from trident_backend.engine.tensorrt.names import INPUTS
from trident_backend.engine.tensorrt.step_inputs import NetworkCall, StepCalls

_ALIGNED_INTS = ALIGNMENT // 4


class InputBuffer:
    """Memory for the inputs of any step.

    Args:
        device: whose.
        num_slots: sequences of a decode call, at most.
        max_num_tokens: tokens of all calls of a step, and rows of logits, at most.
        max_num_seqs: calls of a step, at most.
    """

    def __init__(self, device: Device, num_slots: int, max_num_tokens: int, max_num_seqs: int) -> None:
        self._device = device
        self._stride = _aligned(num_slots)
        num_ints = num_ints_of(num_slots, max_num_tokens, max_num_seqs)
        self._host: Int32Array = device.pinned(num_ints * 4).view(np.int32)
        self._address = device.allocate(num_ints * 4)

    def upload(self, calls: StepCalls) -> list[dict[str, int]]:
        """Enqueue the upload of all inputs.

        Returns:
            the addresses of each prefill call's inputs, by name.
        """
        end = 0
        if calls.decode is not None:
            for index, name in enumerate(INPUTS):
                self._write(calls.decode.inputs[name], index * self._stride)
            end = len(INPUTS) * self._stride
        addresses = []
        for call in calls.prefills:
            call_addresses, end = self._append(call, end)
            addresses.append(call_addresses)
        self._device.upload(self._address, self._host[:end])
        return addresses

    @property
    def decode_addresses(self) -> dict[str, int]:
        """The addresses of the decode call's inputs, in every step that has one."""
        return {name: self._address + index * self._stride * 4 for index, name in enumerate(INPUTS)}

    def close(self) -> None:
        """Free the device memory; the pinned memory is the device's to free."""
        self._device.free(self._address)

    def _append(self, call: NetworkCall, offset: int) -> tuple[dict[str, int], int]:
        addresses = {}
        for name in INPUTS:
            addresses[name] = self._address + offset * 4
            offset = self._write(call.inputs[name], offset)
        return addresses, offset

    def _write(self, values: Int32Array, offset: int) -> int:
        self._host[offset : offset + values.size] = values.ravel()
        return offset + _aligned(values.size)


def num_ints_of(num_slots: int, max_num_tokens: int, max_num_seqs: int) -> int:
    """Return how many int32 any step needs."""
    padding = len(INPUTS) * _ALIGNED_INTS * max_num_seqs
    return len(INPUTS) * _aligned(num_slots) + 3 * max_num_tokens + padding


def _aligned(num_ints: int) -> int:
    return -(-num_ints // _ALIGNED_INTS) * _ALIGNED_INTS
