"""Networks of several ranks, written for TensorRT and evaluated side by side in this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorrt_rtx_bindings.tensorrt_rtx as trt

from tests.compiler.families.openvino_model import read_model
from tests.tensorrt.collectives import ThreadGroup
from tests.tensorrt.interpreter import Interpreter
from tests.tensorrt.number_formats import STORAGE, Array
from tests.tensorrt.program import Program
from tests.tensorrt.recording import RecordingModule, RecordingNetwork, record
from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.weights.sharding import ShardSpec
from trident_compiler.weights.weights import WeightSource

SLOT_LEN = 41


def write_rank(checkpoint: Path, share: ShardSpec, compute: str, weight_format: str) -> Program:
    """One rank's network, recorded as it was handed to TensorRT."""
    model = read_model(checkpoint)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = RecordingNetwork(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)))
    source = WeightSource(
        TensorFiles(checkpoint),
        weight_format,
        compute,
        tied=model.outline.is_tied,
        uniform=True,
        share=share,
    )
    lowering = TensorRTLowering(RecordingModule(trt), network, compute, SLOT_LEN, share.num_ranks)
    lowering.finish(model.write(lowering, source))
    source.require_all_used()
    return record(trt, network)


class Ranks:
    """All ranks of one network with their caches, for up to `num_slots` sequences."""

    def __init__(self, checkpoint: Path, num_ranks: int, compute: str, weight_format: str, num_slots: int = 2) -> None:
        self.programs = [
            write_rank(checkpoint, ShardSpec(rank, num_ranks), compute, weight_format) for rank in range(num_ranks)
        ]
        self._group = ThreadGroup(num_ranks)
        self._caches = [_caches(program, num_slots) for program in self.programs]
        self._interpreters = [
            Interpreter(program, lambda *call, rank=rank: self._group.collective(rank, *call))
            for rank, program in enumerate(self.programs)
        ]

    def run(self, token_ids: list[list[int]], past_len: int, slots: slice) -> npt.NDArray[np.float32]:
        """The logits of all tokens; equal on all ranks, which is checked.

        Args:
            token_ids: `[B, Q]`.
            past_len: tokens that lie in each slot.
            slots: B of them.
        """
        ids = np.array(token_ids, np.int32)
        count = ids.shape[1]
        positions = np.broadcast_to(np.arange(past_len, past_len + count, dtype=np.int32), ids.shape)
        step = {
            "token_ids": ids,
            "position_ids": np.ascontiguousarray(positions),
            "past_lens": np.full(len(ids), past_len, np.int32),
            "context_lens": np.full(len(ids), past_len + count, np.int32),
            "logit_rows": np.arange(ids.size, dtype=np.int32),
        }

        def one(rank: int) -> Array:
            caches = {name: cache[slots] for name, cache in self._caches[rank].items()}
            try:
                return self._interpreters[rank].evaluate({**step, **caches})["logits"]
            except BaseException:
                self._group.abort()
                raise

        with ThreadPoolExecutor(len(self.programs)) as threads:
            logits = list(threads.map(one, range(len(self.programs))))
        for other in logits[1:]:
            np.testing.assert_array_equal(other, logits[0])
        return logits[0]


def _caches(program: Program, num_slots: int) -> dict[str, Array]:
    caches = {}
    for name in program.inputs:
        if "cache" in name:
            info = program.tensors[name]
            caches[name] = np.zeros((num_slots, *info.shape[1:]), STORAGE[info.kind])
    return caches
