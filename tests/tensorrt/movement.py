"""What TensorRT's layers move: shapes, slices, gathers, scatters, fills.

Owns a function, or the maker of one, for each such layer, as `arithmetic` does for those that compute. An index out of
range is an error here, where a GPU would read elsewhere. Never changes a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tensorrt.arithmetic import Attributes, Kernel
from tests.tensorrt.number_formats import Array, held_type


def identity(x: Array) -> Array:
    return x


def shape(x: Array) -> Array:
    return np.array(x.shape, np.int64)


def concatenation(values: Attributes) -> Kernel:
    axis = values["axis"]
    return lambda *parts: np.concatenate(parts, axis=axis)


def shuffle(values: Attributes) -> Kernel:
    """A transpose, a reshape, a transpose."""
    static, zero_copies = values["reshape_dims"], values["zero_is_placeholder"]
    first, second = values["first_transpose"], values["second_transpose"]

    def run(x: Array, dynamic: Array | None = None) -> Array:
        x = x.transpose(first[: x.ndim])
        sizes = static if dynamic is None else dynamic.tolist()
        if sizes is not None:
            x = x.reshape([x.shape[i] if size == 0 and zero_copies else size for i, size in enumerate(sizes)])
        return x.transpose(second[: x.ndim])

    return run


def unsqueeze(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(axes.tolist()))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    return x.squeeze(None if axes is None else tuple(axes.tolist()))


def slice_(values: Attributes) -> Kernel:
    """Places `start + stride * i`; those outside are an error, or what the mode says."""
    mode = values["mode"]
    static_axes = values["axes"]

    def run(x: Array, *tensors: Array | None) -> Array:
        start, size, stride, fill, axes = [*tensors, None, None, None, None, None][:5]
        starts = values["start"] if start is None else start.tolist()
        sizes = values["shape"] if size is None else size.tolist()
        strides = values["stride"] if stride is None else stride.tolist()
        chosen = static_axes if axes is None else axes.tolist()
        outside = np.zeros((1,) * x.ndim, np.bool_)
        for axis, low, count, step_size in zip(chosen or range(x.ndim), starts, sizes, strides, strict=True):
            places = low + step_size * np.arange(count)
            is_outside = (places < 0) | (places >= x.shape[axis])
            if mode == "WRAP":
                places = places % x.shape[axis]
            elif mode in {"CLAMP", "FILL"}:
                places = places.clip(0, x.shape[axis] - 1)
            elif mode != "STRICT_BOUNDS" or is_outside.any():
                raise IndexError(f"slice of {count} from {low} along axis {axis} of {x.shape} ({mode})")
            outside = outside | is_outside.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            x = x.take(places, axis)
        return np.where(outside, 0 if fill is None else fill, x).astype(x.dtype) if mode == "FILL" else x

    return run


def gather(values: Attributes) -> Kernel:
    mode, axis, leading = (values[name] for name in ("mode", "axis", "num_elementwise_dims"))

    def by_axis(x: Array, indices: Array) -> Array:
        _check(indices, x.shape[axis])
        if leading == 0:
            return x.take(indices, axis)
        return np.stack([rows.take(places, axis - 1) for rows, places in zip(x, indices, strict=True)])

    def by_place(x: Array, indices: Array) -> Array:
        width = indices.shape[-1]
        flat = x.reshape(-1, *x.shape[leading:])
        places = indices.reshape(len(flat), -1, width)
        for number in range(width):
            _check(places[..., number], flat.shape[1 + number])
        place = (np.arange(len(flat))[:, None], *np.moveaxis(places, -1, 0))
        picked: Array = flat[place]
        return picked.reshape(*indices.shape[:-1], *x.shape[leading + width :])

    def by_element(x: Array, indices: Array) -> Array:
        _check(indices, x.shape[axis])
        return np.take_along_axis(x, indices.astype(np.int64), axis)

    return {"DEFAULT": by_axis, "ND": by_place, "ELEMENT": by_element}[mode]


def scatter(values: Attributes) -> Kernel:
    """Of several updates of one place any may stay: here it is the last."""
    axis = values["axis"]

    def by_place(x: Array, indices: Array, updates: Array) -> Array:
        result = x.copy()
        for number in range(indices.shape[-1]):
            _check(indices[..., number], x.shape[number])
        result[tuple(np.moveaxis(indices, -1, 0))] = updates
        return result

    def by_element(x: Array, indices: Array, updates: Array) -> Array:
        _check(indices, x.shape[axis])
        result = x.copy()
        np.put_along_axis(result, indices.astype(np.int64), updates, axis)
        return result

    return {"ND": by_place, "ELEMENT": by_element}[values["mode"]]


def one_hot(values: Attributes) -> Kernel:
    axis = values["axis"]

    def run(indices: Array, values: Array, depth: Array) -> Array:
        _check(indices, int(depth.reshape(())))
        hot = indices[..., None] == np.arange(int(depth.reshape(())))
        return np.moveaxis(np.where(hot, values[1], values[0]), -1, axis)

    return run


def fill(values: Attributes) -> Kernel:
    """`alpha + sum of beta[axis] * index[axis]`."""
    kind = held_type(values["output_kind"])
    if values["operation"] != "LINSPACE":
        raise KeyError(values["operation"])

    def run(size: Array | None = None, alpha: Array | None = None, beta: Array | None = None) -> Array:
        sizes = values["shape"] if size is None else size.tolist()
        slopes: Any = [values["beta"]] * len(sizes) if beta is None else beta.reshape(-1).tolist()
        result = np.full(sizes, values["alpha"] if alpha is None else alpha.reshape(()), np.float64)
        for axis, slope in enumerate(slopes):
            result += slope * np.arange(sizes[axis]).reshape([-1 if i == axis else 1 for i in range(len(sizes))])
        return result.astype(kind)

    return run


def _check(indices: Array, limit: int) -> None:
    if indices.size and (indices.min() < 0 or indices.max() >= limit):
        raise IndexError(f"an index of {int(indices.min())} to {int(indices.max())} where there are {limit}")
