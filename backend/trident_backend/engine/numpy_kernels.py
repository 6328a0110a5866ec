"""The vocabulary's kernels in numpy, for engines whose logits lie in this process and for tests.

Owns no state. Never samples.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import CHUNK_WIDTH, FloatArray, Int32Array


class NumpyKernels:
    """See `VocabularyKernels`."""

    def chunk_exp_sums(
        self, logits: FloatArray, maxima: FloatArray, inverse_temperatures: FloatArray, floors: FloatArray | None = None
    ) -> FloatArray:
        """See `VocabularyKernels.chunk_exp_sums`."""
        with np.errstate(all="ignore"):
            weights = np.exp((logits - maxima[:, None]) * inverse_temperatures[:, None])
        if floors is not None:
            weights[logits < floors[:, None]] = 0.0
        sums: FloatArray = np.add.reduceat(weights, np.arange(0, logits.shape[1], CHUNK_WIDTH), axis=1)
        return sums

    def top_k(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        """See `VocabularyKernels.top_k`; among equals the lowest ids come first."""
        ids = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(logits, ids, axis=1), ids.astype(np.int32)
