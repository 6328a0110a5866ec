"""Custom resources, checked by the types and schemas of kept packages for Node.

Owns the call of node/check.mjs. Never a built-in kind, which kubernetes-validate checks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kubernetes.rendering import Object
from tests.programs import find

_FOLDER = Path(__file__).parent / "node"
needs_types = pytest.mark.skipif(
    find("node") is None or not (_FOLDER / "node_modules").is_dir(),
    reason=f"types of custom resources are missing: npm ci --prefix {_FOLDER.relative_to(Path(__file__).parents[2])}",
)


def complaints(documents: Sequence[Object]) -> list[list[str]]:
    """Return what is wrong with each of some custom resources."""
    done = subprocess.run(
        ["node", str(_FOLDER / "check.mjs")],
        input=json.dumps(documents),
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: list[list[str]] = json.loads(done.stdout)
    return found
