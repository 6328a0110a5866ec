"""Marks that hold for a whole folder of tests.

Owns how the conftest.py of a folder gives a mark to all tests in it. Never decides which folder has which mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest


def mark_folder(name: str) -> tuple[Callable[[pytest.Config], bool | None], Callable[[pytest.Item], None]]:
    """Return the hooks `pytest_ignore_collect` and `pytest_itemcollected` for the conftest.py of a folder.

    They mark each of its tests, and where the command line leaves tests of this mark out its modules are not imported:
    what these import takes longer than many other tests.
    """

    def pytest_ignore_collect(config: pytest.Config) -> bool | None:
        expression = str(config.getoption("markexpr"))
        is_left_out = re.search(rf"\bnot {name}\b", expression) and not re.search(r"\bor\b", expression)
        return True if is_left_out else None

    def pytest_itemcollected(item: pytest.Item) -> None:
        item.add_marker(name)

    return pytest_ignore_collect, pytest_itemcollected
