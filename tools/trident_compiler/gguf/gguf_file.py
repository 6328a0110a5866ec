"""A GGUF file: its metadata and its tensors, mapped into memory and checked before use.

Owns the reading of the format, and the bounds of everything that a file says about itself: counts, lengths, types and
offsets are held against the bytes that are there before anything is allocated. Never interprets a key and never
converts a value.

The layout, little-endian: magic, version, the counts of tensors and of keys; the keys with their values; a line for
each tensor (name, sizes with the fastest first, type, offset); then the data, from the next multiple of the alignment
on.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_ensemble.contract.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT, _MAX_ALIGNMENT = "general.alignment", 32, 1 << 20
_STRING, _ARRAY, _FLOAT32, _BOOL = 8, 9, 6, 7
#: Value type -> how numpy reads it.
_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_MAX_DIMS = 4
#: Sizes and counts of elements are int64 wherever they go.
_MAX_ELEMENTS = 2**63 - 1


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a mapped file, as it is stored.

    Args:
        name: as the file spells it.
        shape: slowest dimension first, as numpy and PyTorch have it.
        type_name: GGML's name of its number type, such as F32 or Q4_K.
        data: its bytes, uint8 `[rows, bytes of a row]`, where a row is the last dimension; a view of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    data: npt.NDArray[np.uint8]

    @property
    def num_rows(self) -> int:
        """Rows of the tensor, all dimensions but the last together."""
        return self.data.shape[0]

    @property
    def row_length(self) -> int:
        """Values of a row."""
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Values of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """An opened file.

    Args:
        path: where it lies.
        metadata: its keys; arrays of numbers are numpy's, arrays of texts are lists.
        tensors: its tensors by name, in the order of the file.
    """

    path: Path
    metadata: JsonConfig
    tensors: Mapping[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Map a file, and read and check everything but the tensors' values.

    Raises:
        CheckpointError: it is no such file, truncated, or says of itself what cannot be; names what.
    """
    try:
        with path.open("rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    cursor = _Cursor(file, path.name)
    if cursor.take(4, "its first bytes") != _MAGIC:
        raise CheckpointError(f"{path.name}: no GGUF file: it does not begin with {_MAGIC.decode()}")
    version = cursor.number("<I", "its version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        problem = "is written for big-endian machines" if swapped else f"is of GGUF version {version}"
        raise CheckpointError(f"{path.name}: {problem}; little-endian files of versions 2 and 3 are read")
    num_tensors = cursor.count("<Q", "the number of tensors", least_bytes=24)
    num_keys = cursor.count("<Q", "the number of keys", least_bytes=13)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text("a key")
        if key in metadata:
            raise CheckpointError(f"{path.name}: {key} is there twice")
        metadata[key] = cursor.value(key)
    config = JsonConfig(metadata, path.name)
    alignment = config.integer(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT, most=_MAX_ALIGNMENT)
    if alignment & (alignment - 1):
        raise config.refuse(_ALIGNMENT_KEY, "must be a power of two")
    lines = [cursor.tensor_line() for _ in range(num_tensors)]
    data = _Data(file, -(-cursor.position // alignment) * alignment, alignment, path.name)
    tensors: dict[str, GgufTensor] = {}
    blocks = _blocks()
    for line in lines:
        if line.name in tensors:
            raise CheckpointError(f"{path.name}: tensor {line.name} is there twice")
        if line.type_id not in blocks:
            raise CheckpointError(f"{path.name}: {line.name}: values of GGML's type {line.type_id} are not known")
        tensors[line.name] = _tensor(line, blocks[line.type_id], data)
    return GgufFile(path, config, tensors)


@dataclass(frozen=True)
class _TensorLine:
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class _Block:
    """A block of values of one of GGML's number types."""

    name: str
    values: int
    num_bytes: int


@dataclass(frozen=True)
class _Data:
    """The part of a file that holds values."""

    file: mmap.mmap
    start: int
    alignment: int
    where: str


class _Cursor:
    """Reads a file's head from front to back, and never beyond its end."""

    def __init__(self, file: mmap.mmap, where: str) -> None:
        self._file = file
        self._where = where
        self.position = 0

    @property
    def left(self) -> int:
        return len(self._file) - self.position

    def take(self, num_bytes: int, what: str) -> bytes:
        if num_bytes > self.left:
            raise CheckpointError(
                f"{self._where}: truncated: {what} would take {num_bytes} bytes at {self.position}, of {self.left} left"
            )
        begin, self.position = self.position, self.position + num_bytes
        return self._file[begin : self.position]

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def count(self, form: str, what: str, least_bytes: int) -> int:
        """Return a count of things, each of which takes so many bytes of what follows."""
        count = self.number(form, what)
        if count * least_bytes > self.left:
            raise CheckpointError(f"{self._where}: {what} is {count}, which {self.left} bytes cannot hold")
        return count

    def text(self, what: str) -> str:
        raw = self.take(self.count("<Q", f"the length of {what}", 1), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._where}: {what} is no text in UTF-8") from None

    def value(self, key: str) -> Any:
        kind = self.number("<I", f"the type of {key}")
        if kind == _STRING:
            return self.text(key)
        if kind == _ARRAY:
            return self._array(key)
        value = self._scalars(key, kind, 1)[0]
        if kind == _FLOAT32:
            # The shortest decimal that is this float32, as the file's author wrote it: 1e-05, not 9.9999997e-06.
            return float(str(value))
        return value.item()

    def _array(self, key: str) -> Any:
        kind = self.number("<I", f"the type of {key}")
        if kind == _STRING:
            return [self.text(key) for _ in range(self.count("<Q", f"the length of {key}", 8))]
        item = self._item(key, kind)
        return self._scalars(key, kind, self.count("<Q", f"the length of {key}", item.itemsize))

    def _scalars(self, key: str, kind: int, count: int) -> npt.NDArray[Any]:
        item = self._item(key, kind)
        raw = np.frombuffer(self.take(item.itemsize * count, key), np.uint8)
        # Any byte but 0 is true; numpy must not see others as they are.
        return raw != 0 if kind == _BOOL else raw.view(item)

    def _item(self, key: str, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self._where}: {key}: values of type {kind} are not read")
        return np.dtype(_SCALARS[kind])

    def tensor_line(self) -> _TensorLine:
        name = self.text("a tensor's name")
        num_dims = self.number("<I", f"the dimensions of {name}")
        if not 1 <= num_dims <= _MAX_DIMS:
            raise CheckpointError(f"{self._where}: {name}: {num_dims} dimensions; 1 to {_MAX_DIMS} are read")
        sizes = [self.number("<Q", f"the shape of {name}") for _ in range(num_dims)]
        if min(sizes) < 1 or math.prod(sizes) > _MAX_ELEMENTS:
            raise CheckpointError(f"{self._where}: {name}: its shape {sizes[::-1]} is not one")
        type_id = self.number("<I", f"the type of {name}")
        return _TensorLine(name, tuple(sizes[::-1]), type_id, self.number("<Q", f"the offset of {name}"))


def _tensor(line: _TensorLine, block: _Block, data: _Data) -> GgufTensor:
    if line.shape[-1] % block.values:
        raise CheckpointError(
            f"{data.where}: {line.name}: rows of {line.shape[-1]} values are no whole blocks of {block.name}, of "
            f"{block.values} each"
        )
    num_rows, row_bytes = math.prod(line.shape[:-1]), line.shape[-1] // block.values * block.num_bytes
    begin = data.start + line.offset
    if line.offset % data.alignment or begin + num_rows * row_bytes > len(data.file):
        raise CheckpointError(
            f"{data.where}: {line.name}: offset {line.offset} and shape {list(line.shape)} of {block.name} do not fit "
            f"the file's {len(data.file)} bytes; the file is truncated or damaged"
        )
    values = np.frombuffer(data.file, np.uint8, num_rows * row_bytes, begin).reshape(num_rows, row_bytes)
    return GgufTensor(line.name, line.shape, block.name, values)


def _blocks() -> dict[int, _Block]:
    """Return each of GGML's number types by its number."""
    # Imported where it is needed: it takes a second, and most builds read no GGUF.
    from gguf.constants import GGML_QUANT_SIZES  # noqa: PLC0415

    return {int(kind): _Block(kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
