"""A client's values as tensors of a Triton request.

Owns the conversion by data type. Never knows a tensor's name or meaning.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype


def tensor_of(dtype: str, value: Any) -> npt.NDArray[Any]:
    """Return a value, or a list of values, as an array of shape `[1, number of values]`.

    Args:
        dtype: Triton's name of the data type, as in a model's metadata: `BYTES`, `INT32`, ...
        value: a JSON value. In a tensor of `BYTES` a text is itself, and any other value is JSON text.

    Raises:
        ValueError, TypeError, OverflowError: the value is not of this type.
    """
    values = value if isinstance(value, list) else [value]
    if dtype == "BYTES":
        return np.array(
            [[(each if isinstance(each, str) else json.dumps(each)).encode() for each in values]], np.object_
        )
    return np.array([values], triton_to_np_dtype(dtype))


def raw_bytes(array: npt.NDArray[Any]) -> bytes:
    """Return the bytes of an array as a request carries them."""
    if array.dtype == np.object_:
        content: bytes = serialize_byte_tensor(array).item()
        return content
    return array.tobytes()
