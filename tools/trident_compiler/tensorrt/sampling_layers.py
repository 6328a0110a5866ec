"""The layers of TensorRT that sampling's networks are made of.

Owns how each becomes calls of the network API, beside those that other networks are made of too. Never knows what they
are for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trident_backend.engine.gpu.names import Operand
from trident_backend.engine.tensorrt.names import LOGITS
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers


class SamplingLayers(TensorRTLayers):
    """The few layers that the networks are made of.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        network: empty, strongly typed.
        vocab_size: V.
    """

    def __init__(self, trt: Any, network: Any, vocab_size: int) -> None:
        super().__init__(trt, network)
        self.vocab_size = vocab_size
        self.logits = network.add_input(LOGITS, trt.float32, (-1, vocab_size))

    def input(self, name: str, dtype: Any, *widths: int) -> Tensor:
        """Add an input `[?, *widths]`."""
        return self.network.add_input(name, dtype, (-1, *widths))

    def rows(self) -> Tensor:
        """Gather the rows that the input `rows` names, `[N, V]`."""
        return self.gather(self.logits, self.input(Operand.ROWS, self.trt.int32))

    def column(self, name: str) -> Tensor:
        """Add an input of one number for each row, `[N, 1]`."""
        return self.reshape(self.input(name, self.trt.float32), -1, 1)

    def token_ids(self, dtype: npt.DTypeLike) -> Tensor:
        """Add the constants 0 to V - 1, `[1, V]`."""
        return self.constant(np.arange(self.vocab_size, dtype=dtype)[None])

    def gather_pairs(self, table: Tensor, pairs: Tensor) -> Tensor:
        return self.network.add_gather_v2(table, pairs, self.trt.GatherMode.ND).get_output(0)

    def scatter_pairs(self, table: Tensor, pairs: Tensor, values: Tensor) -> Tensor:
        return self.network.add_scatter(table, pairs, values, self.trt.ScatterMode.ND).get_output(0)

    def columns(self, tensor: Tensor, start: int, count: int) -> Tensor:
        """Slice `count` neighbouring columns of `[N, columns]`."""
        layer = self.network.add_slice(tensor, (0, start), (0, count), (1, 1))
        shape = self.network.add_shape(tensor).get_output(0)
        num_rows = self.network.add_slice(shape, (0,), (1,), (1,)).get_output(0)
        layer.set_input(2, self.concatenate(num_rows, self.constant(np.array([count], np.int64))))
        return layer.get_output(0)
