"""`trident families`: the model types that Trident builds, and which engine serves each of them.

Owns the command and its three forms: lines for people, JSON, and the table of the documentation. What is known comes
from the registry of families and from the engines' refusals; it is never written down here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trident_compiler.compiler_choice import CUDA, OPENVINO, TENSORRT
from trident_compiler.cuda.refusals import REFUSALS as CUDA_REFUSALS
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.registry import FAMILIES
from trident_compiler.openvino.refusals import REFUSALS as OPENVINO_REFUSALS
from trident_compiler.tensorrt.refusals import REFUSALS as TENSORRT_REFUSALS

#: Engine -> what it cannot compute, and why.
ENGINES: Mapping[str, Mapping[Feature, str]] = {
    OPENVINO: OPENVINO_REFUSALS,
    TENSORRT: TENSORRT_REFUSALS,
    CUDA: CUDA_REFUSALS,
}
_MODULES = "../tools/trident_compiler/families"


@dataclass(frozen=True)
class Support:
    """A model type, and the engines that serve its models.

    Args:
        model_type: of config.json.
        module: of the package of families, where its network is.
        refused: engine -> the keys of config.json that it does not serve, and why.
    """

    model_type: str
    module: str
    refused: Mapping[str, Mapping[str, str]]


def supported(families: Sequence[Family[Any]] = FAMILIES) -> list[Support]:
    """Return every model type with what serves it, sorted by name."""
    found = []
    for family in families:
        refused = {
            engine: {each.value: refusals[each] for each in family.features if each in refusals}
            for engine, refusals in ENGINES.items()
        }
        module = family.read_config.__module__.rpartition(".")[2]
        found += [Support(model_type, module, refused) for model_type in family.model_types]
    return sorted(found, key=lambda support: support.model_type)


def markdown(rows: Sequence[Support]) -> str:
    """Return the table of the documentation, a line for each model type."""
    lines = [f"| `model_type` | module | {' | '.join(ENGINES)} |", f"|{'---|' * (2 + len(ENGINES))}"]
    for row in rows:
        cells = [f"`{row.model_type}`", f"[{row.module}]({_MODULES}/{row.module}.py)"]
        cells += ["; ".join(_said(row.refused[engine], "`")) or "served" for engine in ENGINES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--format",
        choices=("text", "json", "markdown"),
        default="text",
        help="text for people, json for programs, markdown for the table of docs/families.md (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the model types; return 0."""
    rows = supported()
    if args.format == "json":
        print(json.dumps([{"model_type": row.model_type, "refused": row.refused} for row in rows], indent=2))
    else:
        print(markdown(rows) if args.format == "markdown" else _text(rows), end="")
    return 0


def _text(rows: Sequence[Support]) -> str:
    """A line for each type: the engines that serve all its models, and what others refuse below."""
    width = max(len(row.model_type) for row in rows)
    lines = []
    for row in rows:
        served = ", ".join(engine for engine in ENGINES if not row.refused[engine])
        refused = [f"{engine}: {said}" for engine in ENGINES for said in _said(row.refused[engine])]
        first, *others = [served, *refused] if served else refused
        lines += [f"{row.model_type:<{width}}  {first}", *(f"{'':<{width}}  {other}" for other in others)]
    return "\n".join(lines) + "\n"


def _said(refused: Mapping[str, str], quote: str = "") -> list[str]:
    return [f"not with {quote}{key}{quote}: {reason}" for key, reason in refused.items()]
