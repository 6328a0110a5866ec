"""Digests of an engine's files, computed on all cores, and their check.

Owns the definition of a digest: the SHA-256 of the SHA-256s of a file's pieces of 64 MiB. One SHA-256 over the whole
file is a chain, which a single core follows at about 1.4 GB/s; pieces are hashed side by side, so that even an engine
whose weights are one file costs no more than reading it. Never interprets what it reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import Manifest

PIECE_BYTES = 1 << 26
#: Read and hashed at a time: small enough to stay in a core's cache between the two.
_READ_BYTES = 1 << 20
#: More threads than this read no faster.
_MAX_THREADS = 16


def digest_folder(folder: Path) -> dict[str, str]:
    """Return the digests of every file below `folder` but the manifest, sorted by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != layout.MANIFEST_FILE)
    names = [path.relative_to(folder).as_posix() for path in files]
    return dict(zip(names, file_digests(files), strict=True))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that every file of the manifest is there and unchanged; reads all of them, on all cores.

    It is done before anything else looks into a file, so that a damaged one is refused by name and never reaches a
    compiler's own parser.

    Raises:
        ArtifactError: a file is missing or differs, named.
    """
    for name in manifest.digests:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactError(f"digests.{name}: leads out of the engine folder")
        if not (folder / name).is_file():
            raise ArtifactError(f"digests.{name}: the file is missing")
    try:
        found = file_digests([folder / name for name in manifest.digests])
    except OSError as error:
        raise ArtifactError(f"digests: a file cannot be read: {error}") from None
    for (name, expected), digest in zip(manifest.digests.items(), found, strict=True):
        if digest != expected:
            raise ArtifactError(f"digests.{name}: the file has changed since the build; build again")


def file_digests(paths: Sequence[Path], *, piece_bytes: int = PIECE_BYTES, threads: int | None = None) -> list[str]:
    """Return the digest of each file, in hexadecimal.

    Args:
        paths: the files.
        piece_bytes: size of a piece; other sizes give other digests.
        threads: how many hash at a time; by default as many as this process has cores, 16 at most.

    Raises:
        OSError: a file cannot be read.
    """
    pieces = [
        (index, offset)
        for index, path in enumerate(paths)
        for offset in range(0, max(path.stat().st_size, 1), piece_bytes)
    ]
    wholes = [hashlib.sha256() for _ in paths]
    pool = ThreadPoolExecutor(threads or _num_threads())
    try:
        hashed = pool.map(lambda piece: _piece_digest(paths[piece[0]], piece[1], piece_bytes), pieces)
        for (index, _), digest in zip(pieces, hashed, strict=True):
            wholes[index].update(digest)
    finally:
        # After an error, or Ctrl-C, the pieces that wait are not worth reading.
        pool.shutdown(cancel_futures=True)
    return [whole.hexdigest() for whole in wholes]


def _piece_digest(path: Path, offset: int, piece_bytes: int) -> bytes:
    """Return the SHA-256 of one piece. hashlib and the file let other threads run meanwhile."""
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(min(_READ_BYTES, piece_bytes)))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        left = piece_bytes
        while left and (num_read := file.readinto(buffer[:left])):
            sha.update(buffer[:num_read])
            left -= num_read
    return sha.digest()


def _num_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MAX_THREADS)
