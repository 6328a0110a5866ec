"""`trident versions`: the engines of a model repository, and which one is served.

Owns the command's options, what it prints, and the renames by which a version is put aside and taken back. Never
touches a running server: one that follows its repository sees what was renamed.

Which version is served is said by the folders alone, as Triton has it: the highest number is. So the way back to a
lower one is to put the higher ones aside, each with one rename.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from rich.console import Console

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import read_manifest
from trident_tools.building.preflight import check_models
from trident_tools.server.built_models import describe_engine
from trident_tools.switching.compatibility import check_replaces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="what `trident build` wrote")
    parser.add_argument(
        "--model", default=layout.ENSEMBLE, metavar="NAME", help="by the name of its ensemble (default: %(default)s)"
    )
    parser.add_argument(
        "--use",
        type=int,
        metavar="N",
        help="serve this version: it is taken back if it was put aside, and higher ones are put aside; `trident serve "
        "--follow` switches to it, any other server with its next start",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> int:
    """List the versions of a model, after a change if one is asked for; return 0.

    Raises:
        TridentError: there is no such model or version, or it cannot take the place of the one that is served.
    """
    names = ModelNames(args.model)
    check_models(args.repository, [names])
    core = args.repository / names.core
    if args.use is not None:
        use_version(core, args.use)
    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    served = layout.version_numbers(core)[-1]
    aside = layout.versions_aside(core)
    for version in sorted([*layout.version_numbers(core), *aside]):
        folder = layout.aside_folder(core, version) if version in aside else core / str(version)
        state = "served" if version == served else "aside" if version in aside else ""
        console.print(f"{version:>4}  {state:<7} {_description(folder)}", markup=False)
    return 0


def use_version(core: Path, version: int) -> None:
    """Make a version the highest: take it back if it is aside, and put higher ones aside.

    At each moment between two of its renames some complete version is the highest.

    Args:
        core: the folder of the core's model.
        version: its number.

    Raises:
        ArtifactError: the version cannot be read.
        ServerError: there is no such version, it cannot take the place of the one that is served in a running server,
            or the repository cannot be written to.
    """
    aside, numbers = layout.aside_folder(core, version), layout.version_numbers(core)
    folder = core / str(version)
    if version not in numbers and not aside.is_dir():
        known = ", ".join(map(str, sorted([*numbers, *layout.versions_aside(core)])))
        raise ServerError(f"--use {version}: {core.name} has {known}")
    wanted = read_manifest(folder if version in numbers else aside)
    with contextlib.suppress(ArtifactError):  # one that cannot be read is what the others must take the place of
        check_replaces(read_manifest(layout.newest_version(core)), wanted)
    try:
        if version not in numbers:
            aside.rename(folder)
        for higher in reversed([number for number in numbers if number > version]):
            (core / str(higher)).rename(layout.aside_folder(core, higher))
    except OSError as error:
        raise ServerError(f"--use {version}: the folders of {core} cannot be renamed: {error.strerror}") from error


def _description(folder: Path) -> str:
    try:
        return describe_engine(read_manifest(folder))
    except ArtifactError as error:
        return f"cannot be read: {error}"
