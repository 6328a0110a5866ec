"""Networks as the compiler hands them to TensorRT, and the steps of a host that keeps sequences in slots.

Owns a plain host for tests: one decode call for all chunks of one token, one prefill call for each other chunk.
Runs networks in the interpreter; never samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.handed_weights import RememberingSource
from tests.tensorrt.interpreter import Interpreter
from tests.tensorrt.number_formats import STORAGE, Array, encode
from tests.tensorrt.program import Program
from tests.tensorrt.recording import RecordingModule, RecordingNetwork, record
from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_compiler.families.family import Decoder
from trident_compiler.model_folder import open_checkpoint
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.weights.weights import Weight


@dataclass(frozen=True)
class Written:
    """A network as it was handed to TensorRT, and the weights that were put into it."""

    program: Program
    weights: dict[str, Weight]


def write_network(
    trt: Any, checkpoint: Path, compute: str, weight_format: str, slot_len: int, *, by_lengths: bool = False
) -> Written:
    """Lower a checkpoint as a build does.

    Args:
        trt: a module with TensorRT's network API.
        checkpoint: its folder.
        compute: fp32, fp16 or bf16.
        weight_format: of matrices: as compute, or int8, int4, fp8.
        slot_len: positions of a slot, the scratch one included.
        by_lengths: see `TensorRTLowering`.
    """
    opened = open_checkpoint(checkpoint)
    formats = compute, weight_format
    return write_model(trt, opened.model, opened.tensors, slot_len, formats=formats, by_lengths=by_lengths)


def write_model(
    trt: Any,
    model: Decoder,
    tensors: Mapping[str, StoredTensor],
    slot_len: int,
    *,
    formats: tuple[str, str] = ("fp32", "fp32"),
    by_lengths: bool = False,
) -> Written:
    """Lower a model as `write_network` does, in the formats of computation and of matrices.

    Its folder may lack a tokenizer.
    """
    compute, weight_format = formats
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = RecordingNetwork(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)))
    source = RememberingSource(tensors, weight_format, compute, tied=model.outline.is_tied, uniform=True)
    lowering = TensorRTLowering(RecordingModule(trt), network, compute, slot_len, by_lengths=by_lengths)
    lowering.finish(model.write(lowering, source))
    source.require_all_used()
    return Written(Program.load(record(trt, network).save()), source.handed)


@dataclass(frozen=True)
class Chunk:
    """The next tokens of the sequence in a slot, of which `past` tokens lie there already."""

    slot: int
    past: int
    tokens: list[int]


class SlotHost:
    """Caches of `num_slots` slots, full of junk at first, and a network that runs on them.

    Args:
        program: the network.
        num_slots: how many sequences it may serve.
        junk: what fills the caches; None is random numbers.
    """

    def __init__(self, program: Program, num_slots: int, junk: float | None = None) -> None:
        random = np.random.default_rng(7)
        self._interpreter = Interpreter(program)
        self._num_slots = num_slots
        self._caches: dict[str, Array] = {}
        for info in (program.tensors[name] for name in program.inputs if "cache." in name):
            bits = random.integers(0, 0x4000, (num_slots, *info.shape[1:]), np.uint16)
            as_stored = bits if info.kind == "BF16" else bits.view(np.float16)
            self._caches[info.name] = as_stored.astype(STORAGE[info.kind], copy=False)
            if junk is not None:
                self._caches[info.name][...] = encode(np.full(1, junk, np.float32), info.kind)
            self._slot_len = info.shape[2]

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """The first tokens of one slot into another."""
        for cache in self._caches.values():
            cache[target, :, :num_tokens] = cache[source, :, :num_tokens]

    def step(self, chunks: Sequence[Chunk]) -> dict[int, Array]:
        """Logits of every token of every chunk, `[tokens, vocab]` by slot."""
        running = [chunk for chunk in chunks if len(chunk.tokens) == 1]
        result = self._generate(running) if running else {}
        for chunk in chunks:
            if len(chunk.tokens) > 1:
                result[chunk.slot] = self._extend(chunk)
        return result

    def _generate(self, running: Sequence[Chunk]) -> dict[int, Array]:
        slots = [chunk.slot for chunk in running]
        count = min(max(slots) + 2, self._num_slots)
        # A slot that is not in the step writes its scratch position, and sees one key.
        ids, positions = np.zeros((count, 1), np.int32), np.zeros((count, 1), np.int32)
        past, context = np.full(count, self._slot_len - 1, np.int32), np.ones(count, np.int32)
        for chunk in running:
            ids[chunk.slot], positions[chunk.slot] = chunk.tokens, chunk.past
            past[chunk.slot], context[chunk.slot] = chunk.past, chunk.past + 1
        step = _inputs(ids, positions, past, context, np.array(slots, np.int32))
        logits = self._run(step, slice(0, count))
        return {slot: logits[number : number + 1] for number, slot in enumerate(slots)}

    def _extend(self, chunk: Chunk) -> Array:
        count = len(chunk.tokens)
        rows = np.arange(count, dtype=np.int32)
        step = _inputs(
            np.array([chunk.tokens], np.int32),
            rows[None] + np.int32(chunk.past),
            np.array([chunk.past], np.int32),
            np.array([chunk.past + count], np.int32),
            rows,
        )
        return self._run(step, slice(chunk.slot, chunk.slot + 1))

    def _run(self, step: dict[str, Array], slots: slice) -> Array:
        caches = {name: cache[slots] for name, cache in self._caches.items()}
        aliases = {f"new_{name}": cache for name, cache in caches.items()}
        return self._interpreter.evaluate({**step, **caches}, aliases)["logits"]


def _inputs(ids: Array, positions: Array, past: Array, context: Array, rows: Array) -> dict[str, Array]:
    return {
        "token_ids": ids,
        "position_ids": positions,
        "past_lens": past,
        "context_lens": context,
        "logit_rows": rows,
    }
