"""The memory of this machine, against what the system says of it otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trident_compiler.planning import machine
from trident_compiler.planning.machine import machine_bytes, this_machine


@pytest.mark.parametrize(("limit", "expected"), [("max", None), ("1048576", 1 << 20), ("1" + "0" * 18, None)])
def test_machine_bytes_are_all_that_it_or_its_container_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_bytes() == pytest.approx(expected or everything, rel=0.01)
    assert this_machine().free_bytes < everything
