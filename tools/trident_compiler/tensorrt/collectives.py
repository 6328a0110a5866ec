"""What devices that share a network tell each other, in TensorRT's network API.

Owns the collective layers; on one device there are none. Never decides what is divided.
"""

from __future__ import annotations

from typing import Any

from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers


class TensorRTCollectives:
    """Collectives among all devices of one network.

    Args:
        layers: of one device's network.
        num_ranks: how many devices there are.
    """

    def __init__(self, layers: TensorRTLayers, num_ranks: int) -> None:
        self._layers = layers
        self._num_ranks = num_ranks

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of all devices' values."""
        if self._num_ranks == 1:
            return x
        trt = self._layers.trt
        return self._collective(x, trt.CollectiveOperation.ALL_REDUCE, trt.ReduceOperation.SUM)

    def all_average(self, x: Tensor) -> Tensor:
        """Return the mean of all devices' float32 values."""
        if self._num_ranks == 1:
            return x
        share = self._layers.number(1 / self._num_ranks, len(x.shape))
        return self._layers.elementwise("PROD", self.all_reduce(x), share)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return all devices' `[T, part]` side by side, `[T, features]`."""
        if self._num_ranks == 1:
            return x
        trt, part = self._layers.trt, x.shape[1]
        stacked = self._collective(x, trt.CollectiveOperation.ALL_GATHER, trt.ReduceOperation.NONE)
        # [ranks * T, part] to [T, ranks, part] to [T, features].
        shuffle = self._layers.network.add_shuffle(stacked)
        shuffle.reshape_dims = (self._num_ranks, -1, part)
        shuffle.second_transpose = trt.Permutation((1, 0, 2))
        return self._layers.reshape(shuffle.get_output(0), -1, self._num_ranks * part)

    def _collective(self, x: Tensor, operation: Any, reduction: Any) -> Tensor:
        layer = self._layers.network.add_dist_collective(x, operation, reduction, -1, [])
        layer.num_ranks = self._num_ranks
        return layer.get_output(0)
