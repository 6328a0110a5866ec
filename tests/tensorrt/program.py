"""A network as plain data: what was handed to TensorRT, without TensorRT.

Owns the form of a recorded network and its bytes. Never reads a network (see `recording`) and never evaluates one.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.tensorrt.number_formats import Array
from trident_ensemble.contract.errors import ArtifactError

#: The first bytes of a saved program; the second half is the version of the form.
_MAGIC = b"TRTNET01"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, its format (the name of TensorRT's `DataType`) and shape; -1 is a size known at run time."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One layer.

    Args:
        operation: the name of its `LayerType`; the two layers of an attention are one step, `ATTENTION`.
        name: the layer's.
        inputs: names of tensors, None where an optional input is absent.
        outputs: names of tensors.
        attributes: as the layer's properties are called; enumerations are their members' names.
    """

    operation: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A whole network; its steps are in an order in which they can be executed.

    Args:
        tensors: every tensor by its name.
        inputs: names of the network's inputs, in its order.
        outputs: names of the network's outputs, in its order.
        steps: all layers but the constants.
        constants: by the tensor's name, as they lie in memory (see `number_formats.STORAGE`).
    """

    tensors: dict[str, TensorInfo]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: dict[str, Array]

    def save(self) -> bytes:
        """One blob: JSON, then the constants."""
        names = list(self.constants)
        arrays = io.BytesIO()
        np.savez(arrays, **{f"c{number}": self.constants[name] for number, name in enumerate(names)})
        text = json.dumps(
            {
                "tensors": [[tensor.name, tensor.kind, tensor.shape] for tensor in self.tensors.values()],
                "inputs": self.inputs,
                "outputs": self.outputs,
                "steps": [[s.operation, s.name, s.inputs, s.outputs, s.attributes] for s in self.steps],
                "constants": names,
            }
        ).encode()
        return b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, arrays.getvalue()])

    @classmethod
    def load(cls, blob: bytes) -> Program:
        """The program that `save` wrote.

        Raises:
            ArtifactError: it is none, or is damaged.
        """
        start = len(_MAGIC) + 8
        if blob[: len(_MAGIC)] != _MAGIC:
            raise ArtifactError("this is not a recorded network: build the engine again with the double of TensorRT")
        try:
            end = start + int.from_bytes(blob[len(_MAGIC) : start], "little")
            form = json.loads(blob[start:end])
            with np.load(io.BytesIO(blob[end:]), allow_pickle=False) as arrays:
                constants = {name: arrays[f"c{number}"] for number, name in enumerate(form["constants"])}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"a recorded network is damaged: {error}") from error
        tensors = [TensorInfo(name, kind, tuple(shape)) for name, kind, shape in form["tensors"]]
        steps = [Step(op, name, tuple(ins), tuple(outs), values) for op, name, ins, outs, values in form["steps"]]
        return cls(
            {tensor.name: tensor for tensor in tensors},
            tuple(form["inputs"]),
            tuple(form["outputs"]),
            tuple(steps),
            constants,
        )

    def in_order(self) -> Program:
        """The same with its steps after those whose results they read: layers may be wired up later than added."""
        producers = {name: step for step in self.steps for name in step.outputs}
        ordered: dict[int, Step] = {}
        waiting = [(step, False) for step in reversed(self.steps)]
        while waiting:
            step, is_ready = waiting.pop()
            if id(step) in ordered:
                continue
            if is_ready:
                ordered[id(step)] = step
                continue
            waiting.append((step, True))
            waiting.extend((producers[name], False) for name in step.inputs if name is not None and name in producers)
        return replace(self, steps=tuple(ordered.values()))
