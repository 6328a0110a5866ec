"""The vocabulary's kernels in numpy, for engines without kernels of their own and for tests.

Owns the arithmetic and no state. Never samples.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import CHUNK_WIDTH, FloatArray, Int32Array


class NumpyKernels:
    """Kernels of one thread."""

    def chunk_exp_sums(
        self, logits: FloatArray, maxima: FloatArray, inverse_temperatures: FloatArray, floors: FloatArray | None = None
    ) -> FloatArray:
        """Sum the weights over each chunk of the vocabulary."""
        with np.errstate(all="ignore"):
            weights = np.exp((logits - maxima[:, None]) * inverse_temperatures[:, None])
        if floors is not None:
            weights[logits < floors[:, None]] = 0.0
        sums: FloatArray = np.add.reduceat(weights, np.arange(0, logits.shape[1], CHUNK_WIDTH), axis=1)
        return sums

    def top_k(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        """Find each row's largest logits and their token ids; among equals the lowest ids come first."""
        ids = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(logits, ids, axis=1), ids.astype(np.int32)
