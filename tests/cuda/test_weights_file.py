"""The weights' file: each weight once, where its place says, and nothing that is lost without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trident_compiler.cuda.weights_file import CountedWeights, WeightsFile
from trident_ensemble.contract.errors import BuildError


def test_weights_file_has_each_weight_where_its_place_says(tmp_path: Path) -> None:
    path, counted = tmp_path / "network.bin", CountedWeights()
    arrays: dict[str, tuple[npt.NDArray[Any], str]] = {
        "odd": (np.arange(77, dtype=np.uint8), "i8"),
        "strided": (np.arange(60, dtype=np.float32).reshape(6, 10)[:, ::2], "fp32"),
        "half": (np.arange(9, dtype=np.float16), "fp16"),
        "empty": (np.empty((0, 4), np.float32), "fp32"),
        "last": (np.arange(3, dtype=np.uint16), "bf16"),
    }
    with WeightsFile(path) as file:
        for name, (values, dtype) in arrays.items():
            assert not file.has(name)
            assert file.append(name, values, dtype) == counted.append(name, values, dtype)
            assert file.has(name)
    contents = path.read_bytes()
    assert file.stored == counted.stored
    assert len(contents) == counted.num_bytes
    for weight in file.stored:
        values, dtype = arrays[weight.name]
        assert (weight.dtype, weight.shape, weight.offset % 256) == (dtype, values.shape, 0)
        assert contents[weight.offset : weight.offset + weight.num_bytes] == values.tobytes()


def test_weights_file_a_full_disk_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"network\.bin cannot be written: No such file"):
        WeightsFile(tmp_path / "none" / "network.bin")
    with (
        pytest.raises(BuildError, match="/dev/full cannot be written: No space left"),
        WeightsFile(Path("/dev/full")) as file,
    ):
        file.append("a", np.zeros(1 << 20, np.uint8), "i8")
    with (
        pytest.raises(BuildError, match="/dev/full cannot be written: No space left"),
        WeightsFile(Path("/dev/full")) as file,
    ):
        file.append("a", np.zeros(8, np.uint8), "i8")
