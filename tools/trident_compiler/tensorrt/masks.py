"""Which positions of its slot each token of a step sees, and what is added to scores by distance, in TensorRT.

Owns the masks of one network, each made once for all layers that want it. Never attends.
"""

from __future__ import annotations

import numpy as np

from trident_compiler.tensorrt.inputs import StepInputs
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers
from trident_compiler.weights.weights import Weight

#: What is added to the score of a position that is not seen. It is finite, in float16 too: a kernel that meets a whole
#: tile of minus infinity makes NaN of it. Next to a token's own score, to which nothing is added, it leaves nothing.
_UNSEEN = -30000.0


class TensorRTMasks:
    """The masks of one network.

    Args:
        layers: of the network.
        inputs: of the network.
        slot_len: S, positions in a slot.
    """

    def __init__(self, layers: TensorRTLayers, inputs: StepInputs, slot_len: int) -> None:
        self._layers = layers
        self._inputs = inputs
        self._slot_len = slot_len
        self._seen: dict[int, Tensor] = {}
        self._distance_biases: dict[bytes, Tensor] = {}
        self._additive: dict[tuple[bytes, int], Tensor] = {}
        self._written: Tensor | None = None

    def seen(self, window: int) -> Tensor:
        """Return bool `[B, 1, Q, S]`: a token sees itself and the `window - 1` before it."""
        if window not in self._seen:
            layers, own = self._layers, self._inputs.own_positions()
            positions = np.arange(self._slot_len, dtype=np.int32).reshape(1, 1, 1, -1)
            recent = layers.elementwise("GREATER", layers.constant(positions + np.int32(window)), own)
            past = layers.elementwise("LESS", layers.constant(positions - np.int32(1)), own)
            self._seen[window] = layers.elementwise("AND", recent, past)
        return self._seen[window]

    def written(self) -> Tensor:
        """Return bool `[B, 1, S, 1]`: the position holds a token of the sequence, the step's own included."""
        if self._written is None:
            layers = self._layers
            positions = layers.constant(np.arange(self._slot_len, dtype=np.int32).reshape(1, 1, -1, 1))
            self._written = layers.elementwise(
                "LESS", positions, layers.reshape(self._inputs.context_lens, -1, 1, 1, 1)
            )
        return self._written

    def distance_biases(self, slopes: Weight) -> Tensor:
        """Return float32 `[B, heads, Q, S]`: each head's slope times (position of the key - position of the query)."""
        key = slopes.values.tobytes()
        if key not in self._distance_biases:
            layers = self._layers
            own = layers.cast(self._inputs.own_positions(), layers.trt.float32)
            positions = layers.constant(np.arange(self._slot_len, dtype=np.float32).reshape(1, 1, 1, -1))
            factors = layers.constant(slopes.values.reshape(1, -1, 1, 1))
            self._distance_biases[key] = layers.elementwise("PROD", layers.elementwise("SUB", positions, own), factors)
        return self._distance_biases[key]

    def additive(self, slopes: Weight, window: int, dtype: Tensor) -> Tensor:
        """Return `[B, heads, Q, S]` of a type: `distance_biases` of what is seen, and little enough for the rest."""
        key = slopes.values.tobytes(), window
        if key not in self._additive:
            layers = self._layers
            least = layers.number(_UNSEEN, 4)
            biases = layers.elementwise("MAX", self.distance_biases(slopes), least)
            self._additive[key] = layers.cast(layers.select(self.seen(window), biases, least), dtype)
        return self._additive[key]
