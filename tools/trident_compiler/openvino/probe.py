"""A few layers of a model's shape, compiled by OpenVINO as the engine would be, to be timed.

Owns the cut that bounds their size, their random weights and the two steps that are timed. Never decides anything by
the times, and never reads a checkpoint's values.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from trident_backend.engine.openvino.names import MAX_CONTEXT_LEN, STEP_VECTORS
from trident_backend.engine.openvino.network import cache_geometry, compile_network
from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_compiler.families.family import Decoder
from trident_compiler.openvino.lowering import Network
from trident_compiler.openvino.precision_trials import DECODE_SEQUENCES, PROMPT_TOKENS, Sample
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import WeightSource
from trident_ensemble.contract.manifest import Precision

#: Parameters of a layer that is tried, at most; a larger layer is cut, with its proportions kept.
_MAX_PARAMETERS = 1 << 24
#: Layers are repeated up to so many parameters, so that a small model's steps are not all overhead.
_ENOUGH_PARAMETERS, _MAX_LAYERS = 1 << 22, 4
#: Tokens that the probe knows, at most.
_VOCABULARY = 1024
#: Tokens that each decoding sequence has in the cache.
_PAST_TOKENS = 64

Array = npt.NDArray[np.int32]


def probe_model(model: Decoder) -> Decoder:
    """Return a model of the same kind of layers: fewer of them, narrower ones where they are large, and few tokens."""
    factor = 1
    while (layer := _layer_parameters(model, factor)) > _MAX_PARAMETERS:
        factor *= 2
    num_layers = min(_MAX_LAYERS, model.num_layers, max(1, _ENOUGH_PARAMETERS // layer))
    return model.reduced(num_layers=num_layers, vocab_size=_VOCABULARY, factor=factor)


def _layer_parameters(model: Decoder, factor: int) -> int:
    cut = model.reduced(num_layers=1, vocab_size=_VOCABULARY, factor=factor)
    return cut.outline.size(Role.COLUMN, Role.ROW, Role.WHOLE)


class RandomWeights(WeightSource):
    """Random values for whatever is asked for, in the formats that the checkpoint's would come in.

    Args:
        dtype: of the tensors as the checkpoint stores them.
        matrix_format: as `WeightSource` has it.
        plain_format: as `WeightSource` has it.
        tied: as `WeightSource` has it.
    """

    def __init__(self, dtype: str, matrix_format: str, plain_format: str, *, tied: bool) -> None:
        super().__init__({}, matrix_format, plain_format, tied=tied)
        self._dtype = dtype
        # Drawn once and repeated: times do not depend on values, as long as they are ordinary ones.
        self._values = np.random.default_rng(0).standard_normal(1 << 16, np.float32) * np.float32(0.02)

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        kind, values = self._encoded()
        memory = mmap.mmap(-1, max(1, int(np.prod(shape)) * values.itemsize))
        stored = np.frombuffer(memory, values.dtype, int(np.prod(shape)))
        stored[:] = np.resize(values, stored.shape)
        return StoredTensor(name, kind, stored.reshape(shape), memory, 0)

    def _encoded(self) -> tuple[str, npt.NDArray[Any]]:
        if self._dtype == "BF16":
            return self._dtype, (self._values.view(np.uint32) >> 16).astype(np.uint16)
        return self._dtype, self._values.astype(np.float16) if self._dtype == "F16" else self._values


class CompiledProbe:
    """A compiled network of few layers, and the two steps that are timed; calling it computes both once.

    Args:
        network: with holes for attention; kept, as its weights' memory is the compiled network's too.
        precision: as the engine would have it.
        clock: seconds.
    """

    def __init__(self, network: Network, precision: Precision, clock: Callable[[], float] = time.perf_counter) -> None:
        self._network = network
        compiled = compile_network(network.model, precision)
        geometry = cache_geometry(compiled)
        self._request = compiled.create_infer_request()
        self._clock = clock
        blocks_each = -(-(_PAST_TOKENS + 1) // geometry.block_size)
        prompt_blocks = -(-PROMPT_TOKENS // geometry.block_size)
        num_blocks = max(DECODE_SEQUENCES * blocks_each, prompt_blocks)
        for tensor in geometry.tensors:
            values = ov.Tensor(tensor.element_type, ov.Shape([num_blocks, *tensor.block_shape]))
            self._request.set_tensor(tensor.name, values)
        self._prompt = step_inputs(1, PROMPT_TOKENS, 0, prompt_blocks)
        self._decode = step_inputs(DECODE_SEQUENCES, 1, _PAST_TOKENS, blocks_each)

    def __call__(self) -> Sample:
        return Sample(self._timed(self._prompt), self._timed(self._decode))

    def _timed(self, inputs: dict[str, Array]) -> float:
        for name, values in inputs.items():
            self._request.set_tensor(name, ov.Tensor(values, shared_memory=True))
        start = self._clock()
        self._request.infer()
        return (self._clock() - start) * 1e3


def step_inputs(num_sequences: int, new_tokens: int, past_tokens: int, blocks_each: int) -> dict[str, Array]:
    """Return the inputs of a step of equally long sequences, as `StepBatch` describes them."""
    num_tokens = num_sequences * new_tokens
    tokens = np.arange(num_tokens) % 7
    positions = np.tile(np.arange(past_tokens, past_tokens + new_tokens), num_sequences)
    past_lens, begins = np.full(num_sequences, past_tokens), np.arange(num_sequences + 1) * new_tokens
    blocks, block_begins = np.arange(num_sequences * blocks_each), np.arange(num_sequences + 1) * blocks_each
    vectors = (tokens, positions, past_lens, begins, blocks, block_begins, begins[1:] - 1)
    inputs = dict(zip(STEP_VECTORS, vectors, strict=True)) | {MAX_CONTEXT_LEN: np.array(past_tokens + new_tokens)}
    return {name: values.astype(np.int32) for name, values in inputs.items()}
