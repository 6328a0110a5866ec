"""Reading GGUF files: what is there, and what is refused, against the `gguf` package's own reader and writer."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.gguf_files import finish
from trident_compiler.gguf.gguf_file import GgufFile, open_gguf
from trident_compiler.gguf.importer import import_gguf
from trident_compiler.gguf.values import rows
from trident_ensemble.contract.errors import CheckpointError


def write(path: Path) -> Path:
    """A file with a key of every type, and tensors of several."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -300)
    writer.add_int32("a.i32", -70000)
    writer.add_uint64("a.u64", 2**40)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float32("a.f32", 1e-5)
    writer.add_float64("a.f64", 1e-5)
    writer.add_bool("a.yes", True)
    writer.add_bool("a.no", False)
    writer.add_string("a.text", "naïve 😀")
    writer.add_array("a.texts", ["one", "", "thrée"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.25])
    writer.add_array("a.flags", [True, False])
    generator = np.random.default_rng(0)
    for kind in ("F32", "F16", "Q8_0", "Q4_0", "Q6_K"):
        values = generator.standard_normal((3, 256)).astype(np.float32)
        of_kind = gguf.GGMLQuantizationType[kind]
        if kind == "Q6_K":  # no writer has it: any bytes are values, with a scale that is a number
            blocks = generator.integers(0, 256, (3, 210), dtype=np.uint8)
            blocks[:, -2:] = np.float16(0.01).tobytes()[0], np.float16(0.01).tobytes()[1]
            writer.add_tensor(kind, blocks, raw_dtype=of_kind)
        else:
            writer.add_tensor(kind, gguf.quants.quantize(values, of_kind), raw_dtype=of_kind)
    finish(writer)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "file.gguf")


def test_gguf_file_keys_are_those_of_the_package_own_reader(path: Path) -> None:
    found, reader = open_gguf(path).metadata.values, gguf.GGUFReader(path)
    assert found["a.f32"] == 1e-5
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        expected = field.contents()
        value = found[name].tolist() if isinstance(found[name], np.ndarray) else found[name]
        assert value == (pytest.approx(expected) if name == "a.f32" else expected), name


def test_gguf_file_tensors_are_those_of_the_package_own_reader(path: Path) -> None:
    file = open_gguf(path)
    tensors = gguf.GGUFReader(path).tensors
    assert list(file.tensors) == [tensor.name for tensor in tensors]
    for tensor in tensors:
        found = file.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(rows(found, slice(None)), expected)
        np.testing.assert_array_equal(rows(found, np.array([2, 0])), expected[[2, 0]])


def test_gguf_file_cut_off_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    last = open_gguf(path).tensors["Q6_K"]
    end = len(whole) - len(whole) % 32 if len(whole) % 32 else len(whole)
    cut = tmp_path / "cut.gguf"
    for length in [*range(700), *range(700, end - last.data.nbytes, 97)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            open_gguf(cut)


def try_import(path: Path, folder: Path) -> GgufFile | None:
    """Open a file and import it; None where it was refused as it should be."""
    try:
        file = open_gguf(path)
        import_gguf(path, folder)
    except CheckpointError:
        return None
    return file


def test_gguf_file_changed_anyhow_is_read_or_refused_and_takes_no_memory(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    head = whole.index(b"Q6_K") + 60
    mutated = tmp_path / "mutated.gguf"
    chance = random.Random(3)  # noqa: S311 (a test's choice)
    extreme = [b"\xff" * 8, b"\x00" * 8, struct.pack("<Q", 2**62), struct.pack("<Q", 2**31), struct.pack("<Q", 10**9)]
    tracemalloc.start()
    try:
        for _ in range(1500):
            changed = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                at = chance.randrange(head)
                if chance.random() < 0.5:
                    changed[at] = chance.randrange(256)
                else:
                    value = chance.choice(extreme)
                    changed[at : at + len(value)] = value
            mutated.write_bytes(changed)
            try_import(mutated, tmp_path / "folder")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def header(*parts: Any) -> bytes:
    return b"GGUF" + struct.pack("<I", 3) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def line(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def one_tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return header(struct.pack("<QQ", 1, 0), line(b"t", shape, kind, offset), b"\0" * 4096)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"GGU", "truncated"),
        (b"ggml" + b"\0" * 100, "no GGUF file"),
        (b"PK\x03\x04" + b"\0" * 100, "no GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + b"\0" * 100, "GGUF version 1"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 100, "big-endian"),
        (header(struct.pack("<QQ", 2**63, 0), b"\0" * 99), "the number of tensors is 9223372036854775808"),
        (header(struct.pack("<QQ", 0, 2**40), b"\0" * 99), "the number of keys is 1099511627776"),
        (header(struct.pack("<QQ", 0, 1), struct.pack("<Q", 2**50), b"\0" * 99), "the length of a key"),
        (header(struct.pack("<QQ", 0, 1), text(b"\xff\xfe"), b"\0" * 99), "no text in UTF-8"),
        (header(struct.pack("<QQ", 0, 1), text(b"k"), struct.pack("<I", 77), b"\0" * 99), "k: values of type 77"),
        (
            header(struct.pack("<QQ", 0, 1), text(b"k"), struct.pack("<IIQ", 9, 8, 2**60), b"\0" * 99),
            "the length of k is 1152921504606846976",
        ),
        (
            header(struct.pack("<QQ", 0, 1), text(b"k"), struct.pack("<IIQ", 9, 9, 1), b"\0" * 99),
            "k: values of type 9",
        ),
        (
            header(struct.pack("<QQ", 0, 2), (text(b"k") + struct.pack("<IB", 0, 1)) * 2, b"\0" * 99),
            "k is there twice",
        ),
        (
            header(struct.pack("<QQ", 0, 1), text(b"general.alignment"), struct.pack("<II", 4, 24), b"\0" * 99),
            "general.alignment = 24: must be a power of two",
        ),
        (one_tensor((2,) * 9), "t: 9 dimensions"),
        (one_tensor((0, 4)), r"t: its shape \[4, 0\] is not one"),
        (one_tensor((2**40, 2**40)), "is not one"),
        (one_tensor((2**20, 2**20)), "do not fit"),
        (one_tensor((4,), kind=500), "GGML's type 500"),
        (one_tensor((33,), kind=8), "no whole blocks of Q8_0"),
        (one_tensor((4,), offset=7), "offset 7"),
        (one_tensor((4,), offset=2**63), "do not fit"),
        (header(struct.pack("<QQ", 2, 0), line(b"t", (4,), 0, 0) * 2, b"\0" * 4096), "tensor t is there twice"),
    ],
)
def test_gguf_file_what_cannot_be_is_refused_by_name(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as refused:
        open_gguf(path)
    assert "bad.gguf" in str(refused.value)


def test_gguf_file_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(tmp_path / "none.gguf")
