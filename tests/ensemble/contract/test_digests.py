"""Digests of files: what they are, whatever their size and however many hash them."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from trident_ensemble.contract import digests
from trident_ensemble.contract.digests import PIECE_BYTES, file_digests

PIECE = 1 << 10


def reference(content: bytes, piece_bytes: int) -> str:
    pieces = [content[start : start + piece_bytes] for start in range(0, max(len(content), 1), piece_bytes)]
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("num_bytes", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7])
def test_digests_a_digest_is_that_of_the_pieces_digests(num_bytes: int, threads: int, tmp_path: Path) -> None:
    content = bytes(range(251)) * (num_bytes // 251 + 1)
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(content[:num_bytes])
    other.write_bytes(b"other")
    assert file_digests([path, other, path], piece_bytes=PIECE, threads=threads) == [
        reference(content[:num_bytes], PIECE), reference(b"other", PIECE), reference(content[:num_bytes], PIECE)
    ]  # fmt: skip


def test_digests_a_read_shorter_than_a_piece_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40)
    monkeypatch.setattr(digests, "_READ_BYTES", 100)
    assert file_digests([path], piece_bytes=PIECE) == [reference(path.read_bytes(), PIECE)]


def test_digests_pieces_of_one_file_are_hashed_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PIECE))
    both = threading.Barrier(2, timeout=60)
    hashed = digests._piece_digest

    def meeting(*arguments: object) -> bytes:
        both.wait()  # breaks where one piece waits for the other
        return hashed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(digests, "_piece_digest", meeting)
    assert file_digests([path], piece_bytes=PIECE, threads=2) == [reference(bytes(2 * PIECE), PIECE)]


def test_digests_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_digests([tmp_path / "none"])


def test_digests_pieces_are_of_the_size_that_manifests_are_written_with() -> None:
    assert PIECE_BYTES == 64 * 2**20
