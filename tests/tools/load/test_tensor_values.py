"""A client's values as tensors, read back by Triton's own client library."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from trident_tools.load.tensor_values import raw_bytes, tensor_of


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("INT32", 5), ("INT32", [1, -2]), ("UINT64", 2**64 - 1), ("FP32", 0.5), ("BOOL", True), ("BOOL", [True, False])],
)
def test_tensor_values_tensor_of_numbers_is_read_back(dtype: str, value: Any) -> None:
    array = tensor_of(dtype, value)
    values = value if isinstance(value, list) else [value]
    assert array.shape == (1, len(values))
    assert np.frombuffer(raw_bytes(array), triton_to_np_dtype(dtype)).tolist() == values


@pytest.mark.parametrize("value", ["h\u00e9llo", ["a", ""], {"role": "user"}, [{"a": 1}, "b"]])
def test_tensor_values_tensor_of_bytes_is_read_back(value: Any) -> None:
    array = tensor_of("BYTES", value)
    values = value if isinstance(value, list) else [value]
    texts = [each if isinstance(each, str) else json.dumps(each) for each in values]
    assert array.shape == (1, len(values))
    assert [text.decode() for text in deserialize_bytes_tensor(raw_bytes(array))] == texts


@pytest.mark.parametrize(("dtype", "value"), [("INT32", "many"), ("FP32", {"a": 1}), ("INT32", [None])])
def test_tensor_values_tensor_of_refuses_a_value_of_another_type(dtype: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        tensor_of(dtype, value)
