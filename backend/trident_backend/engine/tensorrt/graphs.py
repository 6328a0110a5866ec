"""Decode calls, captured as CUDA graphs so that a call costs one launch instead of hundreds.

Owns which numbers of sequences are captured, and the graphs. Never captures anything once the engine has loaded: the
memory that graphs take is known before the first request, and no request waits for a capture.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable
from typing import Any

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.tensorrt.names import DECODE_PROFILE
from trident_backend.engine.tensorrt.plan import Context, Plan, Shape
from trident_ensemble.contract.errors import EngineError

#: Shapes and addresses of a decode call of so many sequences.
Binder = Callable[[int], tuple[dict[str, Shape], dict[str, int]]]


def captured_sizes(num_slots: int) -> tuple[int, ...]:
    """Return the sizes of decode calls, in sequences: few enough to capture each, and close enough to waste little."""
    sizes = [size for size in (1, 2, 4, *range(8, num_slots, 8)) if size < num_slots]
    return (*sizes, num_slots)


class DecodeGraphs:
    """Runs decode calls, as graphs where that is possible.

    Each size has its own execution context: a graph repeats what its context was set to, which must not change.

    Args:
        device: where.
        plan: of the network.
        sizes: ascending.
        bind: the same for the same size at any time; it may run as soon as this is made.

    Raises:
        EngineError: TensorRT or the device failed; or the plan is a part of a network, and cannot be captured.
    """

    def __init__(self, device: Device, plan: Plan, sizes: tuple[int, ...], bind: Binder) -> None:
        self._device = device
        self._plan = plan
        self._sizes = sizes
        self._bind = bind
        self._contexts: list[Context] = []
        self._graphs: dict[int, Any] = {}
        try:
            self._capture_all()
        except BaseException:
            self.close()
            raise

    def padded(self, num_seqs: int) -> int:
        """Return the size of the decode call for `num_seqs` sequences."""
        return self._sizes[bisect.bisect_left(self._sizes, num_seqs)]

    def run(self, size: int) -> None:
        """Enqueue a decode call of one of the sizes."""
        if size in self._graphs:
            self._device.launch(self._graphs[size])
        else:
            self._plan.run(*self._bind(size), profile=DECODE_PROFILE)

    def close(self) -> None:
        """Free the graphs, then what they run."""
        while self._graphs:
            self._device.free_graph(self._graphs.popitem()[1])
        while self._contexts:
            self._contexts.pop().close()

    def _capture_all(self) -> None:
        log, began = logging.getLogger(__name__), time.monotonic()
        # The largest first: what it needs beyond the plan's memory, the others find.
        for size in reversed(self._sizes):
            reason = self._capture(size)
            if not reason:
                continue
            if self._plan.communicator is not None:
                # NCCL wants a call captured by all ranks or by none, and the others do not know of this.
                raise EngineError(f"no CUDA graph for {size} sequences, where all GPUs need one: {reason}")
            log.warning("no CUDA graph for %d sequences or fewer: %s", size, reason)
            break
        log.info("captured %d CUDA graphs in %.1f s", len(self._graphs), time.monotonic() - began)

    def _capture(self, size: int) -> str:
        """Capture one size; return the reason where it cannot be captured, else an empty text."""
        context = self._plan.context(DECODE_PROFILE, fixed_shapes=True)
        self._contexts.append(context)
        shapes, addresses = self._bind(size)
        # TensorRT does at the first run what it must not do while it is captured.
        context.run(shapes, addresses)
        self._device.synchronize()
        if not context.is_capturable:
            return "TensorRT says that this plan cannot be captured"
        try:
            self._graphs[size] = self._device.capture(lambda: context.run(shapes, addresses))
        except EngineError as error:
            return str(error)
        return ""
