"""The small inputs of a step on the device: all of them in one upload.

Owns their pinned and their device memory, and their places. The generation call's inputs always lie at the same
addresses, as a captured graph reads them there.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import Int32Array
from trident_backend.engine.tensorrt.device import Device
from trident_backend.engine.tensorrt.step_inputs import INPUTS, NetworkCall, StepCalls

#: TensorRT wants tensors to begin at multiples of so many bytes.
ALIGNMENT = 256
_ALIGNED_INTS = ALIGNMENT // 4


class InputBuffer:
    """Room for the inputs of any step.

    Args:
        device: whose.
        num_slots: sequences of a generation call, at most.
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
            each context call's addresses by input.
        """
        end = 0
        if calls.generation is not None:
            for index, name in enumerate(INPUTS):
                self._write(calls.generation.inputs[name], index * self._stride)
            end = len(INPUTS) * self._stride
        addresses = []
        for call in calls.contexts:
            places, end = self._append(call, end)
            addresses.append(places)
        self._device.upload(self._address, self._host[:end])
        return addresses

    @property
    def generation_addresses(self) -> dict[str, int]:
        """Where the generation call's inputs lie, in every step that has one."""
        return {name: self._address + index * self._stride * 4 for index, name in enumerate(INPUTS)}

    def close(self) -> None:
        """Free the device memory; the pinned memory is the device's to free."""
        self._device.free(self._address)

    def _append(self, call: NetworkCall, place: int) -> tuple[dict[str, int], int]:
        addresses = {}
        for name in INPUTS:
            addresses[name] = self._address + place * 4
            place = self._write(call.inputs[name], place)
        return addresses, place

    def _write(self, values: Int32Array, place: int) -> int:
        self._host[place : place + values.size] = values.ravel()
        return place + _aligned(values.size)


def num_ints_of(num_slots: int, max_num_tokens: int, max_num_seqs: int) -> int:
    """Room that any step needs, in int32."""
    padding = len(INPUTS) * _ALIGNED_INTS * max_num_seqs
    return len(INPUTS) * _aligned(num_slots) + 3 * max_num_tokens + padding


def _aligned(num_ints: int) -> int:
    return -(-num_ints // _ALIGNED_INTS) * _ALIGNED_INTS
