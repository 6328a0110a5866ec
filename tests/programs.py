"""Programs that some tests run beside the project: container engines, proxies, Prometheus.

Owns how their absence is told. Never installs one: `tools/setup_peers.sh` does.
"""

from __future__ import annotations

import shutil

import pytest


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where a program is missing, with the package that brings it as the reason.

    Args:
        program: the name of the executable.
        package: of Debian, or where else the program comes from.
    """
    reason = f"{program} is missing: it comes with {package}"
    return pytest.mark.skipif(find(program) is None, reason=reason)


def find(program: str) -> str | None:
    """Return the path of a program, also of one that Debian keeps where only root's PATH leads; None if missing."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
