"""A Python environment in which `tensorrt` and `cuda.bindings.runtime` are the doubles, for whole servers.

PYTHONPATH would do for a process of our own, but Triton's Python backend embeds an isolated Python, which looks at the
packages of the first `python3` on PATH and at nothing else.
"""

from __future__ import annotations

import site
import venv
from pathlib import Path

DOUBLE = Path(__file__).parent
ROOT = DOUBLE.parents[2]


def make(folder: Path) -> Path:
    """Make the environment with all packages of this one behind the doubles; returns its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = [
        f"import sys; sys.path[:0] = {[str(DOUBLE), str(ROOT)]!r}",
        *(f"import site; site.addsitedir({own!r})" for own in site.getsitepackages()),
    ]
    (packages / "doubles.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "bin" / "python3"
