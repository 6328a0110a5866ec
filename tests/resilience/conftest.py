"""What the tests of this folder share: their mark."""

from __future__ import annotations

from tests.folder_marks import mark_folder

pytest_ignore_collect, pytest_itemcollected = mark_folder("e2e")
