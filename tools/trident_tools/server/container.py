"""The detection of containers.

Owns the marks that container engines leave. Never decides what follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Written by Docker, and by Podman and CRI-O.
_FILES = (".dockerenv", "run/.containerenv")
#: Set by Kubernetes, and by Podman, LXC and systemd-nspawn (which set `container` to their name).
_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")


def runs_in_container(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Return whether this process runs in a container.

    Args:
        environment: the environment of this process.
        root: the root of the file system.
    """
    return any(environment.get(name) for name in _VARIABLES) or any((root / file).exists() for file in _FILES)
