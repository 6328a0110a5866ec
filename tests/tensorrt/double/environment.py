"""A Python environment in which `tensorrt` and `cuda.bindings` are the doubles, for whole servers."""

from __future__ import annotations

from pathlib import Path

from tests.environments import WITHOUT_TORCH, make_environment

DOUBLE = Path(__file__).parent
ROOT = DOUBLE.parents[2]


def make(folder: Path) -> Path:
    """Make the environment with all packages of this one behind the doubles; returns its interpreter."""
    return make_environment(folder, f"import sys; sys.path[:0] = {[str(DOUBLE), str(ROOT)]!r}", WITHOUT_TORCH)
