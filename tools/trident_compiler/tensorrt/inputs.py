"""The inputs of a decoder's network in TensorRT beside its caches, and the shape of a step.

Owns their names and how B sequences of Q tokens each lie in values: wide `[T, features]` and heads
`[T, heads, 1, size]` have T = B * Q tokens on one axis, and attention wants both apart. Never knows what is computed.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.tensorrt import names
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers


class StepInputs:
    """The inputs of one network, all int32.

    Args:
        layers: of the network, which has no inputs yet.
    """

    def __init__(self, layers: TensorRTLayers) -> None:
        self._layers = layers
        #: `[B, Q]`.
        self.token_ids = self._input(names.TOKEN_IDS, (-1, -1))
        #: `[B, Q]`.
        self.position_ids = self._input(names.POSITION_IDS, (-1, -1))
        #: `[B]`: tokens that lie in each slot before the step, and after it.
        self.past_lens = self._input(names.PAST_LENS, (-1,))
        self.context_lens = self._input(names.CONTEXT_LENS, (-1,))
        #: `[R]`.
        self.logit_rows = self._input(names.LOGIT_ROWS, (-1,))
        self._step_shape = layers.network.add_shape(self.token_ids).get_output(0)

    def by_sequence(self, heads: Tensor) -> Tensor:
        """Return `[T, heads, 1, size]` as `[B, heads, Q, size]`."""
        return self._by_sequence(heads, heads.shape[1], heads.shape[3])

    def own_positions(self) -> Tensor:
        """Return each token's position, `[B, 1, Q, 1]`."""
        return self._by_sequence(self.position_ids, 1, 1)

    def by_token(self, heads: Tensor) -> Tensor:
        """Return `[B, heads, Q, size]` as `[T, heads * size]`."""
        shuffle = self._layers.network.add_shuffle(heads)
        shuffle.first_transpose = self._layers.trt.Permutation((0, 2, 1, 3))
        shuffle.reshape_dims = (-1, heads.shape[1] * heads.shape[3])
        return shuffle.get_output(0)

    def _by_sequence(self, x: Tensor, num_heads: int, width: int) -> Tensor:
        layers = self._layers
        sizes = layers.constant(np.array([num_heads, width], np.int64))
        shuffle = layers.network.add_shuffle(x)
        shuffle.set_input(1, layers.concatenate(self._step_shape, sizes))
        shuffle.second_transpose = layers.trt.Permutation((0, 2, 1, 3))
        return shuffle.get_output(0)

    def _input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._layers.network.add_input(name, self._layers.trt.int32, shape)
