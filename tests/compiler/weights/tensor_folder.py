"""Tensors of a checkpoint, as a test says: written to a file and mapped again.

Owns the file. Never makes a configuration: whoever asks for weights knows the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from trident_compiler.checkpoint.tensor_files import SINGLE_FILE, TensorFiles


def tensor_folder(folder: Path, tensors: Mapping[str, npt.NDArray[np.float32]]) -> TensorFiles:
    """Return the tensors, mapped from a file in the folder."""
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / SINGLE_FILE)
    return TensorFiles(folder)


def random_values(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return values of which no two are alike."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
