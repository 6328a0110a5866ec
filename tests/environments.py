"""Python environments for whole servers: all packages of this one, and changes in front of them.

Owns how such an environment is made. PYTHONPATH would do for a process of our own, but Triton's Python backend embeds
an isolated Python, which looks at the packages of the first `python3` on PATH and at nothing else.
"""

from __future__ import annotations

import site
import venv
from pathlib import Path

#: Serving does not need PyTorch, which only the tests install. Without it transformers is imported in a third of the
#: time, in each of a server's processes.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None"


def make_environment(folder: Path, *lines: str) -> Path:
    """Make an environment that runs these lines, each an `import` statement, when it starts.

    Returns:
        its interpreter
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    behind = [f"import site; site.addsitedir({own!r})" for own in site.getsitepackages()]
    (packages / "front.pth").write_text("\n".join([*lines, *behind]) + "\n", encoding="utf-8")
    return folder / "bin" / "python3"
