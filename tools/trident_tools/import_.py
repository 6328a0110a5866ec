"""`trident import`: a GGUF file becomes the folder of a checkpoint.

Owns the command's options and where the folder goes. Never reads a tensor itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from trident_ensemble.contract.errors import BuildError, CheckpointError
from trident_tools.building.gguf_import import import_file
from trident_tools.building.repository import staging

_DTYPES = ("bf16", "f16", "f32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("file", type=Path, metavar="FILE.gguf", help="what to import")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the checkpoint to write; must not exist")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="number type of every matrix; f32 keeps any file exactly (default: what the file has as numbers is kept "
        "exactly, what it has as quantized blocks becomes bf16)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="take the tokenizer of this folder, of the model that the file was made of (default: the file's own)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> int:
    """Import the file; return 0.

    Raises:
        TridentError: the file or the folder cannot be used; nothing is left behind.
    """
    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    folder: Path = args.folder
    if folder.exists():
        raise BuildError(f"{folder}: exists; name a folder that does not")
    if not args.file.is_file():
        raise CheckpointError(f"{args.file}: no such file")
    with staging(folder, "FOLDER") as staged:
        import_file(args.file, staged / "checkpoint", console, dtype=args.dtype, tokenizer=args.tokenizer)
        try:
            (staged / "checkpoint").rename(folder)
        except OSError as error:
            raise BuildError(f"{folder}: cannot be written: {error}") from None
    console.print(f"written   {folder}", markup=False)
    return 0
