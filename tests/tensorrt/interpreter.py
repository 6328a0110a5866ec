"""Evaluates a recorded network with numpy.

Owns the order of things: constants are folded once, each layer's result is rounded to the format that TensorRT gave its
tensor, and values are let go after their last use. What the layers mean is in `arithmetic`, `movement` and `attention`,
and follows NVIDIA's documentation, never the compiler that wrote the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.tensorrt import arithmetic, attention, movement
from tests.tensorrt.arithmetic import Kernel, Maker
from tests.tensorrt.number_formats import INT4, STORAGE, Array, decode, encode, rounded
from tests.tensorrt.program import Program, Step, TensorInfo
from trident_ensemble.contract.errors import EngineError

#: Given the operation (`ALL_REDUCE`, `ALL_GATHER`, `REDUCE_SCATTER`...), the reduction (`SUM`..., or `NONE`) and this
#: rank's array, returns what this rank gets; gathered and scattered along axis 0.
Collective = Callable[[str, str, Array], Array]

_COMPUTING: dict[str, Maker] = {
    "ACTIVATION": arithmetic.activation,
    "ATTENTION": attention.attention,
    "CAST": arithmetic.cast,
    "CUMULATIVE": arithmetic.cumulative,
    "DEQUANTIZE": arithmetic.dequantize,
    "ELEMENTWISE": arithmetic.elementwise,
    "MATRIX_MULTIPLY": arithmetic.matrix_multiply,
    "REDUCE": arithmetic.reduce,
    "ROTARY_EMBEDDING": attention.rotary_embedding,
    "SOFTMAX": arithmetic.softmax,
    "TOPK": arithmetic.topk,
    "UNARY": arithmetic.unary,
}
#: Their results are of their tensors' formats already.
_EXACT: dict[str, Maker] = {
    "CONCATENATION": movement.concatenation,
    "FILL": movement.fill,
    "GATHER": movement.gather,
    "IDENTITY": lambda _: movement.identity,
    "KV_CACHE_UPDATE": attention.kv_cache_update,
    "ONE_HOT": movement.one_hot,
    "QUANTIZE": arithmetic.quantize,
    "SCATTER": movement.scatter,
    "SELECT": lambda _: np.where,
    "SHAPE": lambda _: movement.shape,
    "SHUFFLE": movement.shuffle,
    "SLICE": movement.slice_,
    "SQUEEZE": lambda _: movement.squeeze,
    "UNSQUEEZE": lambda _: movement.unsqueeze,
}
_MAKERS = {**_COMPUTING, **_EXACT}
#: They take caches as they lie in memory.
_READS_STORED = frozenset({"KV_CACHE_UPDATE", "ATTENTION"})
_FAILURES = (ValueError, IndexError, TypeError)


@dataclass(frozen=True)
class _Prepared:
    """A step ready to run: its function, the formats to round to, and the values that nobody reads after it."""

    step: Step
    kernel: Kernel
    kinds: tuple[str, ...]
    dead: tuple[str, ...]


class Interpreter:
    """A network ready to be evaluated; it keeps its constants, dequantized.

    Args:
        program: the network.
        collective: executes its collectives; without one, networks for several ranks are refused.

    Raises:
        EngineError: a layer that the interpreter does not know; it is named.
    """

    def __init__(self, program: Program, collective: Collective | None = None) -> None:
        self.program = program
        self._collective = collective
        #: Tensors that lie in memory while the network runs: input and output name of each cache.
        self._caches = {
            str(step.inputs[0]): step.outputs[0] for step in program.steps if step.operation == "KV_CACHE_UPDATE"
        }
        self._stored = {*self._caches, *self._caches.values()}
        self._constants = {
            name: decode(array, program.tensors[name].kind, program.tensors[name].shape)
            for name, array in program.constants.items()
        }
        with np.errstate(all="ignore"):
            self._steps = self._let_go(self._fold([self._prepare(step) for step in program.steps]))

    def evaluate(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run the network once.

        Args:
            inputs: every input, as it lies in memory (`number_formats.STORAGE`). Caches are written in place.
            outputs: arrays to write results into. That of a cache must be the memory of its input, as TensorRT
                demands.

        Returns:
            every output as it lies in memory: the caller's array where there is one; of a cache, the input's.

        Raises:
            EngineError: an input is missing or has another shape or format, or a layer cannot be computed; named.
        """
        values = {**self._constants, **{name: self._input(name, inputs) for name in self.program.inputs}}
        with np.errstate(all="ignore"):
            for prepared in self._steps:
                self._run(prepared, values)
                for name in prepared.dead:
                    del values[name]
            return {name: self._output(name, values[name], outputs or {}) for name in self.program.outputs}

    def _prepare(self, step: Step) -> _Prepared:
        kinds = tuple(self.program.tensors[name].kind for name in step.outputs)
        if step.operation == "DIST_COLLECTIVE":
            return _Prepared(step, self._collective_kernel(step), kinds, ())
        input_kinds = [None if name is None else self.program.tensors[name].kind for name in step.inputs]
        try:
            maker = _MAKERS[step.operation]
            kernel = maker({**step.attributes, "output_kind": kinds[0], "input_kinds": input_kinds})
        except KeyError as error:
            raise EngineError(f"{_title(step)}: the interpreter does not know {error}") from error
        return _Prepared(step, kernel, kinds if step.operation in _COMPUTING else (), ())

    def _collective_kernel(self, step: Step) -> Kernel:
        collective, values = self._collective, step.attributes
        if values["num_ranks"] == 1:
            return lambda x: x
        if collective is None:
            raise EngineError(
                f"{_title(step)} is of {values['num_ranks']} ranks: the interpreter was given no way to them"
            )
        return lambda x: collective(values["operation"], values["reduction"], x)

    def _fold(self, steps: list[_Prepared]) -> list[_Prepared]:
        """Run what depends on constants alone, once; what is left reads the results as constants."""
        left = []
        for prepared in steps:
            read = {name for name in prepared.step.inputs if name is not None}
            if read <= self._constants.keys() and prepared.step.operation != "DIST_COLLECTIVE":
                self._run(prepared, self._constants)
            else:
                left.append(prepared)
        needed = {name for prepared in left for name in prepared.step.inputs} | set(self.program.outputs)
        self._constants = {name: array for name, array in self._constants.items() if name in needed}
        return left

    def _let_go(self, steps: list[_Prepared]) -> list[_Prepared]:
        """Note behind each step what is not read any more."""
        later = {*self.program.outputs, *self._constants}
        result = []
        for prepared in reversed(steps):
            touched = {name for name in (*prepared.step.inputs, *prepared.step.outputs) if name is not None}
            dead = tuple(touched - later)
            later |= touched
            result.append(_Prepared(prepared.step, prepared.kernel, prepared.kinds, dead))
        return result[::-1]

    def _run(self, prepared: _Prepared, values: dict[str, Array]) -> None:
        step = prepared.step
        arguments = [None if name is None else values[name] for name in step.inputs]
        if step.operation not in _READS_STORED and not self._stored.isdisjoint(step.inputs):
            arguments = [self._decoded(name, array) for name, array in zip(step.inputs, arguments, strict=True)]
        try:
            results: Any = prepared.kernel(*arguments)
        except _FAILURES as error:
            shapes = ", ".join("-" if array is None else str(array.shape) for array in arguments)
            raise EngineError(f"{_title(step)} of {shapes}: {error}") from error
        results = [np.asarray(result) for result in (results if isinstance(results, tuple) else (results,))]
        if prepared.kinds:
            results = [rounded(result, kind) for result, kind in zip(results, prepared.kinds, strict=True)]
        values.update(zip(step.outputs, results, strict=True))

    def _decoded(self, name: str | None, array: Array | None) -> Array | None:
        if name not in self._stored or array is None:
            return array
        return decode(array, self.program.tensors[str(name)].kind)

    def _input(self, name: str, inputs: Mapping[str, Array]) -> Array:
        if name not in inputs:
            raise EngineError(f"input {name} is missing")
        info, array = self.program.tensors[name], inputs[name]
        if array.dtype != STORAGE[info.kind] or info.kind == INT4:
            raise EngineError(f"input {name} is {array.dtype}, not {np.dtype(STORAGE[info.kind])} ({info.kind})")
        if not _fits(array.shape, info):
            raise EngineError(f"input {name} is of shape {array.shape}, not {info.shape}")
        return array if name in self._caches else decode(array, info.kind)

    def _output(self, name: str, value: Array, outputs: Mapping[str, Array]) -> Array:
        if name in self._stored:
            if name in outputs and _address(outputs[name]) != _address(value):
                raise EngineError(f"output {name} does not lie where the cache does that it updates")
            return value
        kind = self.program.tensors[name].kind
        result = encode(np.asarray(value, order="C"), kind)
        if name not in outputs:
            # It may be a constant's memory, or an input's.
            return result.copy()
        target = outputs[name]
        if target.dtype != result.dtype or target.shape != result.shape:
            raise EngineError(
                f"output {name} is {result.dtype} {result.shape}, the array for it {target.dtype} {target.shape}"
            )
        target[...] = result
        return target


def evaluate(
    program: Program, inputs: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Evaluate a network once; an `Interpreter` keeps what is worth keeping between calls."""
    return Interpreter(program).evaluate(inputs, outputs)


def _fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    return len(shape) == len(info.shape) and all(
        expected in {-1, size} for size, expected in zip(shape, info.shape, strict=True)
    )


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _title(step: Step) -> str:
    return f"layer {step.name!r} ({step.operation})"
