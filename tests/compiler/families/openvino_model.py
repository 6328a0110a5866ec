"""A checkpoint as OpenVINO computes it: two sequences with interleaved blocks, their prompts in chunks, then decoding.

Owns the steps. Compiles as a build and the engine host do, without writing an engine folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from trident_backend.engine.openvino.names import MAX_CONTEXT_LEN, STEP_VECTORS
from trident_backend.engine.openvino.network import cache_geometry, compile_network
from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.families.family import Decoder
from trident_compiler.families.registry import read_decoder
from trident_compiler.openvino.compiler import kv_precision, lower
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.manifest import Precision

#: Tokens of each step of both sequences: a prompt in chunks, then one token at a time.
CHUNKS = (40, 30, 1, 1, 1, 1, 1)
NUM_TOKENS = sum(CHUNKS)
_BLOCKS = 16


def read_model(folder: Path, max_seq_len: int | None = None) -> Decoder:
    """The model of a checkpoint that may lack a tokenizer."""
    model = read_decoder(JsonConfig.read(folder / "config.json"))
    return model if max_seq_len is None else model.served_at(max_seq_len)


class OpenVINOModel:
    """A checkpoint, compiled.

    Args:
        folder: of the checkpoint.
        compute: fp32 or bf16.
        weights: format of the matrices.
        max_seq_len: of the engine; None is the model's longest.
        kv_cache: format of the cache; None is the computation's.
    """

    def __init__(
        self,
        folder: Path,
        compute: str = "fp32",
        weights: str = "fp32",
        max_seq_len: int | None = None,
        kv_cache: str | None = None,
    ) -> None:
        self.model = read_model(folder, max_seq_len)
        tensors = TensorFiles(folder)
        self.source = WeightSource(tensors, weights, "fp32", tied=self.model.outline.is_tied)
        network = lower(self.model, self.source)
        self._memory = network.memory
        precision = Precision(compute, weights, kv_cache or kv_precision(compute))
        self.compiled = compile_network(network.model, precision)
        geometry = cache_geometry(self.compiled)
        self._block_size = geometry.block_size
        self._request = self.compiled.create_infer_request()
        for tensor in geometry.tensors:
            values = ov.Tensor(tensor.element_type, ov.Shape([_BLOCKS, *tensor.block_shape]))
            self._request.set_tensor(tensor.name, values)

    def logits(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return `[2, NUM_TOKENS, vocab]` of two sequences of `NUM_TOKENS` tokens."""
        found: list[npt.NDArray[np.float32]] = []
        past = 0
        for count in CHUNKS:
            found.append(self._step(sequences[:, past : past + count], past))
            past += count
        return np.concatenate(found, 1)

    def _step(self, tokens: npt.NDArray[np.int64], past: int) -> npt.NDArray[np.float32]:
        count = tokens.shape[1]
        blocks = -(-(past + count) // self._block_size)
        vectors: tuple[Any, ...] = (
            tokens.reshape(-1),
            np.tile(np.arange(past, past + count), 2),
            [past] * 2,
            [0, count, 2 * count],
            [*range(0, 2 * blocks, 2), *range(1, 2 * blocks, 2)],
            [0, blocks, 2 * blocks],
            np.arange(2 * count),
        )
        inputs = dict(zip(STEP_VECTORS, vectors, strict=True)) | {MAX_CONTEXT_LEN: np.array(past + count)}
        for name, values in inputs.items():
            self._request.set_tensor(name, ov.Tensor(np.array(values, np.int32)))
        self._request.infer()
        logits: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data.copy()
        return logits.reshape(2, count, -1)
