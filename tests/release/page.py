"""The page about one release: what was compared, and whether it may go out.

Owns its form. Never measures and never decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.release.gates import Verdict


@dataclass(frozen=True)
class Compared:
    """The two states that a page is about.

    Args:
        this: the one that may go out.
        last: the release whose figures and engine it was compared with.
        machine: on which.
        date: of the day.
    """

    this: str
    last: str
    machine: str
    date: str


def render_page(
    compared: Compared, quality: Sequence[Verdict], speed: Sequence[Verdict], remarks: Sequence[str]
) -> str:
    """Return the page in Markdown."""
    failed = [verdict for verdict in (*quality, *speed) if not verdict.has_passed]
    outcome = (
        f"**Not to be released**: {len(failed)} of {len(quality) + len(speed)} gates have failed."
        if failed
        else f"**May be released**: all {len(quality) + len(speed)} gates have passed."
    )
    lines = [
        "# Release check",
        "",
        outcome,
        "",
        f"- this: {compared.this}",
        f"- last release: {compared.last}",
        f"- machine: {compared.machine}; {compared.date}",
        *(f"- {remark}" for remark in remarks),
        "",
        *_table("Quality", quality),
        *_table("Speed", speed),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    rows = [
        f"| {verdict.what} | {verdict.found} | {verdict.limit} | {'passed' if verdict.has_passed else '**failed**'} |"
        for verdict in verdicts
    ]
    return [f"## {title}", "", "| gate | found | limit | |", "|---|---|---|---|", *rows, ""]
