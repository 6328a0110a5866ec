"""The figures of a release: what its engines foretell, and what they answer.

Owns the file in which they are kept. Never measures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "releases"
FILE = FOLDER / "figures.json"
#: What every release is asked to foretell and to go on with. Neither ever changes, or figures could not be compared.
TEXT, PROMPTS = FOLDER / "text.md", FOLDER / "prompts.json"


@dataclass(frozen=True)
class Quality:
    """What one engine is worth.

    Args:
        perplexity: of the text.
        num_tokens: that the text has.
        answers: token ids of greedy answers to the prompts, in their order.
    """

    perplexity: float
    num_tokens: int
    answers: list[list[int]]


@dataclass(frozen=True)
class Figures:
    """The figures of one state of the project.

    Args:
        version: of the release.
        revision: the commit that was measured, whose engine the next release is compared with.
        machine: on which they were measured.
        quality: by the name of the case.
    """

    version: str
    revision: str
    machine: str
    quality: Mapping[str, Quality] = field(default_factory=dict)


def read_figures(path: Path = FILE) -> Figures:
    """Return the figures of the last release."""
    values = json.loads(path.read_text(encoding="utf-8"))
    cases = {name: Quality(**case) for name, case in values.pop("quality").items()}
    return Figures(**values, quality=cases)


def write_figures(figures: Figures, path: Path = FILE) -> None:
    """Replace the figures of the last release."""
    text = json.dumps(asdict(figures), indent=1)
    new = path.with_suffix(".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)
