"""The files that a command writes.

Owns their replacement: a reader finds the old file or the new one, never half of one. Never decides what is in it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path


def output_file(text: str) -> Path:
    """Read the path of a file for argparse; refuse it before the work if it could not be written after it.

    Raises:
        argparse.ArgumentTypeError: its folder is missing or cannot be written, or it is a folder itself.
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: its folder must exist and be writable")
    return path


def replace_file(path: Path, content: str) -> None:
    """Write a whole text file, or leave the old one unchanged.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o666 & ~_umask())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
