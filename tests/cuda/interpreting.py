"""The source of our kernels, run on arrays by Triton's interpreter: no GPU and no compiler.

Owns that Triton interprets in this process from its import on, while processes that it starts compile; and that the
interpreter computes as a GPU does where it would not by itself: products of bf16, rounding to bf16 and fp8, numbers
that a masked load does not read (NaN, not 0), and memory outside of the arrays (an error). Never knows a kernel.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

assert "triton" not in sys.modules or "TRITON_INTERPRET" in os.environ, "Triton has been imported to compile"
# Triton's own library is interpreted or compiled as a whole, by what the environment says when it is imported; a kernel
# by what the knob says when its module is.
os.environ["TRITON_INTERPRET"] = "1"
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

del os.environ["TRITON_INTERPRET"]
triton.knobs.propagate_env = False
triton.knobs.runtime.interpret = True

from tests.cuda.calls import narrow, storage, widen  # noqa: E402

Array = npt.NDArray[Any]
#: Gives the memory at an address, so many bytes of it, and raises where that is not all allocated.
View = Callable[[int, int], Any]
_Handle = interpreter.TensorHandle
_NARROW = (tl.bfloat16, tl.float8e4nv)


def interpret(
    function: str,
    grid: tuple[int, int, int],
    types: Mapping[str, str],
    constants: Mapping[str, int | float | bool],
    arguments: Mapping[str, Array | int | float],
    *,
    view: View | None = None,
    backwards: bool = False,
) -> None:
    """Run a kernel for every program of a grid, one after another.

    Args:
        function: `module.function` in `trident_compiler.cuda.kernels`.
        grid: programs along each axis.
        types: Triton's, by the names of the parameters that are not constants: `*bf16`, `i32`.
        constants: of all other parameters.
        arguments: numbers; arrays as they lie in memory (bf16 as uint16, fp8 as uint8), or addresses.
        view: the memory that may be touched, for addresses; where it is not given, the arrays are, or where there are
            addresses without it, all is.
        backwards: the last program first.
    """
    module, name = function.split(".")
    kernel = getattr(importlib.import_module(f"trident_compiler.cuda.kernels.{module}"), name)
    assert isinstance(kernel, interpreter.InterpretedFunction), f"{function} has been imported to be compiled"
    assert set(kernel.arg_names) == set(types) | set(constants), (
        f"{function} takes {sorted(kernel.arg_names)}, not {sorted([*types, *constants])}"
    )
    assert set(arguments) == set(types), f"{function}: arguments {sorted(arguments)} for {sorted(types)}"
    typed = {name: _typed(name, types[name], argument) for name, argument in arguments.items()}
    _Launch.prepared.clear()
    with _memory(view or _view_of(types, arguments)), _order(backwards=backwards), np.errstate(all="ignore"):
        kernel[grid](**typed, **constants)


def _typed(name: str, dtype: str, argument: Array | int | float) -> Any:
    """Return an argument as the interpreter hands it to a kernel."""
    kind = tl.str_to_ty(dtype, None)
    if not dtype.startswith("*"):
        return tl.tensor(_Handle(narrow(np.array([argument]), dtype), kind), kind)
    address = argument
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous, f"{name}: kernels see whole arrays"
        assert argument.dtype == storage(dtype[1:]), f"{name}: {argument.dtype} for {dtype}"
        address = argument.ctypes.data
    return tl.tensor(_Handle(np.array([address], np.uint64), kind), kind)


def _view_of(types: Mapping[str, str], arguments: Mapping[str, Array | int | float]) -> View | None:
    """Return a view of the arrays; None, which allows everything, where there are addresses besides."""
    pointed = [argument for name, argument in arguments.items() if types[name].startswith("*")]
    if any(not isinstance(argument, np.ndarray) and argument for argument in pointed):
        return None
    arrays = [argument for argument in pointed if isinstance(argument, np.ndarray)]

    def view(address: int, num_bytes: int) -> None:
        for array in arrays:
            base = array.ctypes.data
            if base <= address and address + num_bytes <= base + array.nbytes:
                return
        raise IndexError(f"{num_bytes} bytes at {address:#x} are in none of the arrays")

    return view


# What the interpreter would do otherwise than a GPU.
class _Launch:
    """What the launch that runs now may touch, in which order its programs run, and which modules are prepared."""

    view: View | None = None
    is_backwards = False
    prepared: ClassVar[set[str]] = set()


@contextmanager
def _memory(view: View | None) -> Iterator[None]:
    before, _Launch.view = _Launch.view, view
    try:
        yield
    finally:
        _Launch.view = before


@contextmanager
def _order(*, backwards: bool) -> Iterator[None]:
    before, _Launch.is_backwards = _Launch.is_backwards, backwards
    try:
        yield
    finally:
        _Launch.is_backwards = before


_set_grid_idx = interpreter.InterpreterBuilder.set_grid_idx


def _set_program(self: Any, *index: int) -> None:
    if _Launch.is_backwards:
        index = tuple(size - 1 - i for size, i in zip(self.grid_dim, index, strict=True))
    _set_grid_idx(self, *index)


def _check(pointers: Any, mask: Any) -> None:
    """Refuse memory that one load or store may not touch; it lies in one array."""
    if _Launch.view is None:
        return
    touched = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
    if touched.size:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        least = int(touched.min())
        _Launch.view(least, int(touched.max()) + size - least)


_load, _store = interpreter.InterpreterBuilder.create_masked_load, interpreter.InterpreterBuilder.create_masked_store


def _masked_load(self: Any, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
    """Load what the mask allows; where nothing is said of the rest, it is junk."""
    _check(pointers, mask)
    if other is None:
        kind = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(kind)
        junk = narrow(np.array(np.nan), kind.name) if kind.is_floating() else _integer_junk(dtype)
        other = _Handle(np.full_like(pointers.data, junk, dtype=dtype), kind)
    return _load(self, pointers, mask, other, *options)


def _integer_junk(dtype: np.dtype[Any]) -> int:
    return 1 if dtype == np.bool_ else int(np.iinfo(dtype).max) - 12345 % int(np.iinfo(dtype).max)


def _masked_store(self: Any, pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
    _check(pointers, mask)
    return _store(self, pointers, value, mask, *options)


_convert_float = interpreter._convert_float


def _convert(data: Array, source: Any, target: Any, mode: Any) -> Array:
    """Round to the nearest, ties to even. The interpreter cuts off bf16, and loses carries into exponents of fp8."""
    known = (tl.bfloat16, tl.float8e4nv, tl.float16, tl.float32)
    if source not in known or target not in known:
        converted: Array = _convert_float(data, source, target, mode)
        return converted
    assert mode != interpreter._ir.ROUNDING_MODE.RTZ, "no kernel of ours cuts numbers off"
    return np.ascontiguousarray(narrow(widen(data, source.name), target.name))


_cast = interpreter.InterpreterBuilder.cast_impl


def _converted(self: Any, source: Any, target: Any) -> Any:
    """Convert whole numbers. The interpreter takes them for the bits of bf16 and fp8."""
    if not source.dtype.scalar.is_int() or target.scalar not in _NARROW:
        return _cast(self, source, target)
    kind = target.scalar
    return _Handle(narrow(source.data.astype(np.float32), kind.name), kind)


_dot = interpreter.InterpreterBuilder.create_dot


def _product(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """Multiply in float32. The interpreter multiplies bf16 as the integers that it keeps them in."""
    wide = [_Handle(widen(x.data, x.dtype.scalar.name), tl.float32) if x.dtype.scalar in _NARROW else x for x in (a, b)]
    return _dot(self, *wide, *rest)


def _refuse_narrow(operation: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Return the operation for numbers that the interpreter can compute with: bf16 and fp8 are integers to it."""

    def checked(self: Any, *operands: Any) -> Any:
        if any(operand.dtype.scalar in _NARROW for operand in operands[:count]):
            raise NotImplementedError("a kernel computes in float32: convert bf16 and fp8 before")
        return operation(self, *operands)

    return checked


_check_tensor = interpreter.ReduceScanOpInterface.check_tensor


def _check_reduced(self: Any, operands: Any) -> None:
    _check_tensor(self, operands)
    if any(operand.dtype.scalar in _NARROW for operand in operands):
        raise NotImplementedError("a kernel reduces in float32: convert bf16 and fp8 before")


_numpy_type = interpreter._get_np_dtype
_numpy_types: dict[str, np.dtype[Any]] = {}


def _known_numpy_type(kind: Any) -> np.dtype[Any]:
    """Return the type that numbers are kept in; the interpreter writes a table of them each time."""
    name = kind.name
    if name not in _numpy_types:
        _numpy_types[name] = _numpy_type(kind)
    return _numpy_types[name]


def _call(self: Any, *arguments: Any, **named: Any) -> Any:
    """Call a function of a kernel. The interpreter would prepare its module each time, which takes milliseconds."""
    module = self.fn.__globals__["__name__"]
    if module not in _Launch.prepared:
        interpreter._patch_lang(self.fn)
        _Launch.prepared.add(module)
    return self.rewrite()(*arguments, **named)


_builder: Any = interpreter.InterpreterBuilder
_builder.set_grid_idx = _set_program
_builder.create_masked_load, _builder.create_masked_store = _masked_load, _masked_store
_builder.cast_impl = _converted
_builder.create_dot = _product
_builder.binary_op = _refuse_narrow(_builder.binary_op, 2)
_builder.unary_op = _refuse_narrow(_builder.unary_op, 1)
interpreter._convert_float = _convert
interpreter.ReduceScanOpInterface.check_tensor = _check_reduced
interpreter._get_np_dtype = _known_numpy_type
interpreter.InterpretedFunction.__call__ = _call
