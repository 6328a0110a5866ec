"""`trident preflight`: what `trident serve` checks before it starts a server, and its engines' files, checked alone.

Owns the command's options and what it prints. Never checks anything itself: `trident serve` calls the same functions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from trident_compiler.planning.memory_plan import size
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import ArtifactError, ServerError
from trident_tools.building.core_changes import changed_settings
from trident_tools.building.memory_use import check_room, memory_use
from trident_tools.building.preflight import check_repository, check_runtime
from trident_tools.core_options import add_core_options
from trident_tools.server.overlay import served_settings
from trident_tools.server.triton_server import find_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="what `trident build` wrote")
    add_core_options(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that the serving options are for, by the name of its ensemble (default: every model of the "
        "repository)",
    )
    parser.add_argument("--no-server", action="store_true", help="check no tritonserver, where another image has it")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> int:
    """Check everything; return 0.

    Raises:
        TridentError: the first thing that is not as it must be, and what to do.
    """
    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    if not args.no_server:
        console.print(f"server    {find_server().executable}", markup=False)
    models = check_repository(args.repository)
    changed = changed_settings(args, args.repository, models)
    for names, manifest in models.items():
        engine = layout.newest_version(args.repository / names.core)
        settings = changed.get(names) or served_settings(args.repository, names)
        compiler = manifest.compiler
        console.print(
            f"model     {names.ensemble}, version {engine.name}: {compiler.name} {compiler.version}, {compiler.target}",
            markup=False,
        )
        check_runtime(manifest)
        use = memory_use(names.ensemble, manifest, settings.gpu)
        check_room(use)
        console.print(f"memory    {size(use.num_bytes)}, which there is", markup=False)
        try:
            verify_files(engine, manifest)
        except ArtifactError as error:
            raise ServerError(f"{engine}: {error}") from None
        console.print(f"files     {len(manifest.digests)}, as they were built", markup=False)
    console.print("ready to be served", markup=False)
    return 0
