"""A checkpoint's tensors: safetensors files, one or sharded, mapped into memory and checked before use.

Owns the reading of the format; trusts neither offsets, nor names, nor the index. Checkpoints carry buffers of all types
that no network needs, so that a tensor whose numbers are not read is refused only when it is asked for. Never copies
values and never converts them. A mapped tensor costs memory only while its pages are touched, and `release` gives them
back.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.pickles import pickle_advice
from trident_ensemble.contract.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MOST_NAMED = 5
_NUMPY_TYPES: dict[str, npt.DTypeLike] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
#: The format's types of whole bytes whose numbers are not read, and the bytes of one.
_OTHER_TYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16"), 2),
    **dict.fromkeys(("U32", "I32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a mapped file.

    Args:
        name: as the checkpoint spells it.
        dtype: as the file calls it.
        values: read-only view of the mapped file; BF16 ones as the uint16 of their bits. Of tensors whose type is
            neither BF16, nor F16, nor F32 the bytes, `[n]`; nobody is handed one.
        file: where it is mapped.
        begin: first byte in the file.
    """

    name: str
    dtype: str
    values: npt.NDArray[Any]
    file: mmap.mmap
    begin: int

    def release(self) -> None:
        """Give the tensor's pages back to the system; touching the values maps them again."""
        page = mmap.PAGESIZE
        first = -(-self.begin // page) * page
        last = (self.begin + self.values.nbytes) // page * page
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self.file.madvise(mmap.MADV_DONTNEED, first, last - first)


class TensorFiles(Mapping[str, StoredTensor]):
    """Every tensor of a checkpoint folder, by name; those whose numbers are not read raise when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Map the folder's files and check their headers.

        Raises:
            CheckpointError: no safetensors, a damaged or dishonest header, or an index that does not fit its files.
        """
        self._tensors: dict[str, StoredTensor] = {}
        expected = _weight_map(folder)
        for name in sorted(set(expected.values())) if expected is not None else [SINGLE_FILE]:
            for tensor in _read(folder / name):
                if expected is not None and expected.get(tensor.name) != name:
                    raise CheckpointError(f"{name}: holds {tensor.name!r}, which {INDEX_FILE} does not place there")
                self._tensors[tensor.name] = tensor
        missing = sorted(set(expected or ()) - set(self._tensors))
        if missing:
            raise CheckpointError(f"{INDEX_FILE}: {missing[0]!r} is not in {expected and expected[missing[0]]}")

    def __getitem__(self, name: str) -> StoredTensor:
        tensor = self._tensors[name]
        if tensor.dtype not in _NUMPY_TYPES:
            raise CheckpointError(f"{name}: dtype {tensor.dtype} is not supported; {', '.join(_NUMPY_TYPES)} are")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.values.nbytes for tensor in self._tensors.values())

    @property
    def matrix_dtypes(self) -> frozenset[str]:
        """The types of the matrices that can be read."""
        matrices = (tensor for tensor in self._tensors.values() if tensor.values.ndim == 2)
        return frozenset(tensor.dtype for tensor in matrices)


class PrefixedTensors(Mapping[str, StoredTensor]):
    """The tensors of a checkpoint under the names of a whole model, also where the bare base model was saved.

    transformers saves a base model without the prefix that it has as a part of a language model, and reads such a file
    as the whole. It is told by its names: none of them begins with the prefix. Iteration yields the names of the file.

    Args:
        tensors: as stored.
        prefix: begins all names of the base model, such as `model.`.
    """

    def __init__(self, tensors: TensorFiles, prefix: str) -> None:
        self._tensors = tensors
        self._absent = prefix if prefix and not any(name.startswith(prefix) for name in tensors) else ""

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name.removeprefix(self._absent)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.removeprefix(self._absent) in self._tensors

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return self._tensors.num_bytes

    @property
    def matrix_dtypes(self) -> frozenset[str]:
        """The types of the matrices that can be read."""
        return self._tensors.matrix_dtypes


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Return the file name of each tensor by the index; None for a checkpoint of a single file."""
    if (folder / SINGLE_FILE).is_file():
        return None
    index = folder / INDEX_FILE
    if not index.is_file():
        advice = pickle_advice(folder, SINGLE_FILE) or f"the folder must hold {SINGLE_FILE} or {INDEX_FILE}"
        raise CheckpointError(f"{folder}: no safetensors: {advice}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(key): str(value) for key, value in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{INDEX_FILE}: cannot be read: {error!r}") from None
    for name in files.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{INDEX_FILE}: weight_map names {name!r}, which is no safetensors file of the folder"
            )
    absent = sorted({name for name in files.values() if not (folder / name).is_file()})
    if absent:
        named = ", ".join(absent[:_MOST_NAMED]) + (", ..." if len(absent) > _MOST_NAMED else "")
        raise CheckpointError(
            f"{INDEX_FILE}: {len(absent)} of its {len(set(files.values()))} files are not in the folder: {named}"
        )
    return files


def _read(path: Path) -> Iterator[StoredTensor]:
    """Map one file, and yield its tensors.

    Its layout: u64 header length, JSON header, then the values without gaps or overlaps.
    """
    try:
        with path.open("rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error}") from None
    header_bytes = int.from_bytes(file[:8], "little")
    if len(file) < 8 or header_bytes > min(len(file) - 8, _MAX_HEADER_BYTES):
        raise CheckpointError(f"{path.name}: the header says it is {header_bytes} bytes long; the file is truncated")
    try:
        header = json.loads(file[8 : 8 + header_bytes])
        entries = sorted(
            (int(entry["data_offsets"][0]), int(entry["data_offsets"][1]), str(name), entry)
            for name, entry in header.items()
            if name != "__metadata__"
        )
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, RecursionError):
        raise CheckpointError(f"{path.name}: the header is not that of a safetensors file") from None
    start, position = 8 + header_bytes, 0
    for begin, end, name, entry in entries:
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str):
            raise CheckpointError(f"{path.name}: {name}: dtype {dtype!r} is not one")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise CheckpointError(f"{path.name}: {name}: shape {shape!r} is not one")
        num_bytes, item_bytes = end - begin, _item_bytes(dtype)
        fits = item_bytes is None or num_bytes == math.prod(shape) * item_bytes
        if begin != position or not fits or num_bytes < 0 or end > len(file) - start:
            raise CheckpointError(
                f"{path.name}: {name}: data_offsets {begin}..{end} do not fit shape {shape} in the file"
            )
        position = end
        item = np.dtype(_NUMPY_TYPES.get(dtype, np.uint8))
        values = np.frombuffer(file, item, num_bytes // item.itemsize, start + begin)
        yield StoredTensor(name, dtype, values.reshape(shape) if dtype in _NUMPY_TYPES else values, file, start + begin)


def _item_bytes(dtype: str) -> int | None:
    """Return the bytes of one number; None for types below a byte and for those that are not known."""
    return np.dtype(_NUMPY_TYPES[dtype]).itemsize if dtype in _NUMPY_TYPES else _OTHER_TYPES.get(dtype)
