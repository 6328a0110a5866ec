"""Networks of a few words of the network language, written for TensorRT and evaluated in numpy.

Owns their writing: values begin as rows of tables, one for each token id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.tensorrt.number_formats import Array
from tests.tensorrt.program import Program
from tests.tensorrt.recording import record
from tests.tensorrt.slot_networks import Chunk, SlotHost
from tests.tensorrt.small_networks import new_network, trt
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.weights.weights import Weight

SLOT_LEN = 41


def weight(name: str, values: Array) -> Weight:
    return Weight(name, "fp32", values.shape, np.ascontiguousarray(values, np.float32))


def lowered(write: Callable[[TensorRTLowering], Any], compute: str = "fp32") -> Program:
    """The network whose logits are what `write` returns, `[T, features]`."""
    network = new_network()
    net = TensorRTLowering(trt, network, compute, SLOT_LEN)
    net.finish(net.select_rows(write(net)))
    return Program.load(record(trt, network).save())


def computed(write: Callable[[TensorRTLowering, Any], Any], x: Array, compute: str = "fp32") -> Array:
    """What `write(net, x)` returns for `x [T, features]`; its tokens are one chunk of a sequence."""
    program = lowered(lambda net: write(net, net.embedding(weight("x", x))), compute)
    return SlotHost(program, 1).step([Chunk(0, 0, list(range(len(x))))])[0]
