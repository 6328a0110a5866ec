"""A GGUF file's import, with its progress and what it says of the file.

Owns what is printed. Never decides where the checkpoint goes.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from trident_compiler.planning.memory_plan import size
from trident_tools.building.bars import Bars

SUFFIX = ".gguf"


def is_checkpoint_file(path: Path) -> bool:
    """Return whether a path is, by its name, a file that is imported."""
    return path.suffix.lower() == SUFFIX


def import_file(
    path: Path, folder: Path, console: Console, *, dtype: str | None = None, tokenizer: Path | None = None
) -> None:
    """Import a file into a folder that does not exist yet.

    Raises:
        CheckpointError: the file is damaged, or holds what is not imported.
        BuildError: the folder cannot be written.
    """
    # Imported where it is needed: a build of a folder needs none of it.
    from trident_compiler.gguf.importer import import_gguf  # noqa: PLC0415

    with Bars(console) as bars:
        imported = import_gguf(
            path,
            folder,
            dtype=dtype,
            tokenizer=tokenizer,
            begin=lambda total: bars.phase("importing", total),
            reached=bars.reached,
        )
    stored = ", ".join(f"{count} {name}" for name, count in imported.stored.items())
    rounded = f", {imported.rounded} rounded to {imported.dtype}" if imported.rounded else ", all kept exactly"
    console.print(f"imported  {path}: {imported.model_type}, {size(imported.num_bytes)}", markup=False)
    console.print(f"tensors   {stored}{rounded}", markup=False)
