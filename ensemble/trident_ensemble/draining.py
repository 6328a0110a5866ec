"""The notice that a server is to finish what it has and take nothing new.

Triton's own answer to SIGTERM refuses the inner steps of ensemble requests in flight as well, and those then never
end. So `trident serve` gives this notice first, waits until the core holds no request, and only then ends Triton. The
notice is a file; its path reaches the models' processes through their environment.

Owns how the notice is given and seen. Never decides what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT_VARIABLE = "TRIDENT_DRAIN_NOTICE"


class DrainNotice:
    """The notice of one server.

    Args:
        path: the file whose existence is the notice; None for a server that is not supervised.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DrainNotice:
        """Return the notice of the server that this process belongs to."""
        path = environment.get(ENVIRONMENT_VARIABLE)
        return cls(Path(path) if path else None)

    def given(self) -> bool:
        """Return whether to refuse new requests from now on. Takes a microsecond."""
        return self._path is not None and self._path.exists()

    def give(self) -> None:
        """Start draining. Irreversible."""
        if self._path is not None:
            self._path.touch()
