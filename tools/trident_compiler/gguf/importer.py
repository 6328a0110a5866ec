"""A GGUF file becomes the folder of a checkpoint.

Owns which files the folder has, and the number type of each tensor. Tensors are read, converted and written one at a
time. Never changes anything but the folder.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.tokenizer_files import read_tokenizer_files
from trident_compiler.gguf.architectures.registry import read_model
from trident_compiler.gguf.gguf_file import GgufFile, open_gguf
from trident_compiler.gguf.layout import Target
from trident_compiler.gguf.safetensors_writer import Slot, write_safetensors
from trident_compiler.gguf.tokenizer import end_ids, token_id, write_templates, write_tokenizer
from trident_compiler.gguf.values import BF16, F16, F32, check_readable, encode, narrowest_exact, pieces
from trident_ensemble.contract.errors import BuildError, CheckpointError

#: What `--dtype` calls the number types, and what config.json does.
DTYPES = {"bf16": BF16, "f16": F16, "f32": F32}
_IN_CONFIG = {BF16: "bfloat16", F16: "float16", F32: "float32"}


@dataclass(frozen=True)
class Imported:
    """The outcome of an import, for people.

    Args:
        model_type: of config.json.
        stored: how many tensors the file has of each of GGML's number types, the most frequent first.
        rounded: how many matrices of the checkpoint were blocks in the file and lost digits.
        dtype: the number type of those.
        num_bytes: of the checkpoint's tensors.
    """

    model_type: str
    stored: dict[str, int]
    rounded: int
    dtype: str
    num_bytes: int


def import_gguf(
    path: Path,
    folder: Path,
    *,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    begin: Callable[[int], None] = lambda _: None,
    reached: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Write a file's model as a checkpoint.

    Args:
        path: the file.
        folder: where to; it is made.
        dtype: of `DTYPES`: the number type of every matrix. None keeps those exactly that the file has as numbers, in
            the narrowest type that does, and rounds what it has as blocks to bfloat16.
        tokenizer: a folder whose tokenizer to take, instead of the file's.
        begin: called with the bytes of all tensors.
        reached: called with the bytes that have been written.

    Raises:
        CheckpointError: the file is damaged, or holds what is not imported; names what.
        BuildError: the folder cannot be written.
    """
    file = open_gguf(path)
    model = read_model(file)
    for tensor in file.tensors.values():
        check_readable(tensor, path.name)
    for target in model.targets:
        _check_size(target, file)
    wanted = None if dtype is None else DTYPES[dtype]
    slots = [Slot(target.name, _dtype(target, file, wanted), target.shape) for target in model.targets]
    config = model.config | _special_ids(file) | {"dtype": _IN_CONFIG[_main_dtype(slots)]}
    total = sum(slot.num_bytes for slot in slots)
    begin(total)
    try:
        folder.mkdir()
        free = shutil.disk_usage(folder).free
        if free < total:
            raise BuildError(f"{folder}: the checkpoint takes {total} bytes, and {free} are free")
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", _generation(file))
        if tokenizer is None:
            write_tokenizer(file.metadata, folder)
        else:
            _copy_tokenizer(tokenizer, file, folder)
        written = _Written(file, reached)
        values = (written.slices(target, slot) for target, slot in zip(model.targets, slots, strict=True))
        write_safetensors(folder / "model.safetensors", slots, values)
    except OSError as error:
        raise BuildError(f"{folder}: cannot be written: {error}") from None
    stored = Counter(tensor.type_name for tensor in file.tensors.values())
    return Imported(model.config["model_type"], dict(stored.most_common()), written.rounded, dtype or "bf16", total)


def _check_size(target: Target, file: GgufFile) -> None:
    """Refuse a tensor whose parts are not as many values as its shape says."""
    size = 0
    for part in target.parts:
        for rows in part.rows:
            tensor = file.tensors[rows.tensor]
            width = 1 if rows.flat or len(tensor.shape) == 1 else tensor.row_length
            size += width * (tensor.size // width if rows.wanted is None else len(rows.wanted))
    if size != int(np.prod(target.shape)):
        raise CheckpointError(f"{file.path.name}: {target.name} of shape {list(target.shape)} would have {size} values")


def _dtype(target: Target, file: GgufFile, wanted: str | None) -> str:
    """Return the number type of a tensor; a vector, and whatever the file has as numbers, is kept exactly.

    A router's matrix is such a tensor, and so is a norm: they are small, and what they lose spreads.
    """
    types = {file.tensors[name].type_name for name in target.sources}
    if len(target.shape) > 1:
        if wanted is not None:
            return wanted
        if not types <= {F32, F16, BF16}:
            return BF16
    if types <= {BF16} and not any(part.added for part in target.parts):
        return BF16
    return narrowest_exact(target, file.tensors)


def _main_dtype(slots: list[Slot]) -> str:
    """Return the number type that most bytes of the matrices have."""
    sizes: Counter[str] = Counter()
    for slot in slots:
        sizes[slot.dtype] += slot.num_bytes if len(slot.shape) > 1 else 0
    return sizes.most_common(1)[0][0]


class _Written:
    """Encodes the values of one tensor after the other, and counts."""

    def __init__(self, file: GgufFile, reached: Callable[[int], None]) -> None:
        self._file = file
        self._reached = reached
        self._num_bytes = 0
        self.rounded = 0

    def slices(self, target: Target, slot: Slot) -> Iterator[npt.NDArray[Any]]:
        """Yield a tensor's values as they are stored.

        Raises:
            CheckpointError: a value that is no number, or too large for the number type.
        """
        rounds = False
        for values in pieces(target, self._file.tensors):
            if not np.isfinite(values).all():
                raise CheckpointError(
                    f"{self._file.path.name}: {next(target.sources)}: holds values that are not finite; the file is "
                    "damaged"
                )
            stored = encode(values, slot.dtype)
            if stored is None:
                raise CheckpointError(
                    f"{self._file.path.name}: {next(target.sources)}: holds values beyond float16; use --dtype bf16"
                )
            rounds = rounds or not _same(stored, values)
            self._num_bytes += stored.nbytes
            self._reached(self._num_bytes)
            yield stored
        self.rounded += rounds


def _same(stored: npt.NDArray[Any], values: npt.NDArray[np.float32]) -> bool:
    """Return whether the first of the values, as many as show it, were kept exactly."""
    some = stored.ravel()[:_SHOWN]
    floats = (some.astype(np.uint32) << 16).view(np.float32) if some.dtype == np.uint16 else some
    return bool(np.array_equal(floats, values.ravel()[:_SHOWN]))


_SHOWN = 4096


def _special_ids(file: GgufFile) -> dict[str, Any]:
    ends = end_ids(file.metadata)
    return {
        "bos_token_id": token_id(file.metadata, "bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": token_id(file.metadata, "padding"),
    }


def _generation(file: GgufFile) -> dict[str, Any]:
    return {key: value for key, value in _special_ids(file).items() if value is not None}


def _copy_tokenizer(tokenizer: Path, file: GgufFile, folder: Path) -> None:
    """Take another folder's tokenizer, and the file's template where that one has none."""
    # Into a folder of its own first: the files are written into a new one.
    taken = folder / "tokenizer"
    read_tokenizer_files(tokenizer).write(taken)
    for path in taken.iterdir():
        path.rename(folder / path.name)
    taken.rmdir()
    has_template = (folder / "chat_template.jinja").is_file()
    config = folder / "tokenizer_config.json"
    if not has_template and (not config.is_file() or "chat_template" not in json.loads(config.read_text("utf-8"))):
        write_templates(file.metadata, folder)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
