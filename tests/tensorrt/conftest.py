"""All tests of this folder are marked `slow`: see docs/testing.md."""

from __future__ import annotations

from tests.folder_marks import mark_folder

pytest_ignore_collect, pytest_itemcollected = mark_folder("slow")
