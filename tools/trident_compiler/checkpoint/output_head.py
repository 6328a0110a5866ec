"""Whether a checkpoint's output projection is what its config.json says: a tensor, or the table of embeddings.

Owns the refusal of those that disagree, before anything is built. transformers goes on with a warning: it keeps a head
apart from the table of which config.json says that it is the same, and invents one that is missing. Never converts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_ensemble.contract.errors import CheckpointError

_KEY = "tie_word_embeddings"
_ROWS = 4096
#: The names of layers' tensors have a number; none of them is a head.
_LAYER = re.compile(r"(^|\.)\d+\.")


def check_output_head(
    config: JsonConfig, tensors: Mapping[str, StoredTensor], head: str, used: Collection[str], *, tied: bool
) -> None:
    """Refuse a head that is missing, and one that differs from the table that is used in its place.

    Args:
        config: config.json.
        tensors: the checkpoint's.
        head: the tensor that the network projects its output with.
        used: the names of all tensors of the network.
        tied: the head is the table of embeddings.

    Raises:
        CheckpointError: names the tensors, the key, and what to do.
    """
    if head not in tensors:
        if not tied:
            problem = f"asks for a tensor {head}, which the checkpoint lacks"
            raise config.refuse(_KEY, f"{problem}; if its head is the table of embeddings, say true in config.json")
        return  # the table, which is missed like any other tensor
    if not tied:
        return
    table = tensors[head]
    known = {tensors[name].name for name in used if name in tensors}
    for name in tensors:
        if name in known or _LAYER.search(name):
            continue
        other = _of_shape(tensors, name, table.values.shape)
        if other is not None and not _equal(table, other):
            problem = f"{name} differs from {table.name}, which would be used in its place"
            raise config.refuse(_KEY, f"{problem}; say false in config.json to use {name}")


def _of_shape(tensors: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...]) -> StoredTensor | None:
    try:
        other = tensors[name]
    except CheckpointError:  # no numbers that a network could use
        return None
    return other if other.values.shape == shape else None


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Compare numbers bit by bit, some rows at a time."""
    rows = range(0, len(a.values), _ROWS)
    equal = all(np.array_equal(_bits(a, first), _bits(b, first)) for first in rows)
    for tensor in (a, b):
        tensor.release()
    return equal


def _bits(tensor: StoredTensor, first: int) -> npt.NDArray[np.uint32]:
    """Return some rows in float32, as their bits."""
    rows = tensor.values[first : first + _ROWS]
    if tensor.dtype == "BF16":
        return rows.astype(np.uint32) << np.uint32(16)
    return rows.astype(np.float32).view(np.uint32)
