"""All tests of this folder are marked `slow`, and in their process Triton interprets: see docs/testing.md.

Owns that Triton is imported to interpret before a module of this folder imports it otherwise. Processes that a test
starts compile: they inherit nothing of this.
"""

from __future__ import annotations

import importlib

from tests.folder_marks import mark_folder

pytest_ignore_collect, pytest_itemcollected = mark_folder("slow")


def pytest_pycollect_makemodule() -> None:
    """Import Triton, which takes a second, where a module of this folder is collected."""
    importlib.import_module("tests.cuda.interpreting")
