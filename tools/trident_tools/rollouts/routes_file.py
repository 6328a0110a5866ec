"""The routes file of gateways, as a rollout changes it.

Owns its replacement: gateways find the old file or the new one, with the same owner and mode. Never changes the stable
side but when the canary takes its place, and never touches a canary that somebody else has put there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trident_ensemble.contract.errors import ConfigError, ServerError, TridentError
from trident_ensemble.contract.routes import Routes, RouteServer, Side, parse_routes, render_routes


class ForeignChangeError(TridentError):
    """Somebody else has changed what a rollout has put in force."""


class RoutesFile:
    """One routes file.

    Args:
        path: of the file. A link is followed, so that the file stays where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()

    def read(self) -> Routes:
        """Return what is in force.

        Raises:
            ConfigError: it cannot be read or understood.
        """
        try:
            return parse_routes(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"--routes {self._path}: is not there; give the file that the gateways were started with"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--routes {self._path}: cannot be read: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"--routes {self._path}: {error}") from None

    def check_free(self) -> None:
        """Refuse a file whose canary has callers.

        Raises:
            ConfigError: it has, or the file cannot be understood.
        """
        weight = self.read().weight
        if weight:
            raise ConfigError(
                f"--routes {self._path}: its canary has {weight:g} % of the callers; `trident rollout undo` takes them "
                "back, `trident rollout finish` makes it the stable side, and `trident rollout start --resume` goes on "
                "with it"
            )

    def add_canary(self, servers: Sequence[RouteServer]) -> None:
        """Put a canary of weight 0 into the file, in the place of one that has no weight.

        Raises:
            ConfigError: there is a canary with callers, or the file or the servers cannot be used.
            ServerError: the file cannot be written.
        """
        self.check_free()
        self._write(Routes(self.read().stable, Side(tuple(servers)), 0.0))

    def set_weight(self, servers: Sequence[RouteServer], weight: float) -> None:
        """Give the canary a weight.

        Raises:
            ForeignChangeError: the canary in the file is another one.
            ServerError: the file cannot be written.
        """
        routes = self.read()
        if routes.canary != Side(tuple(servers)):
            raise ForeignChangeError(f"--routes {self._path}: its canary is not the one of this rollout any more")
        if routes.weight != weight:
            self._write(replace(routes, weight=weight))

    def take_back(self) -> float:
        """Take all callers from whatever canary there is; return the weight that it had.

        Raises:
            ConfigError: the file cannot be understood.
            ServerError: the file cannot be written.
        """
        routes = self.read()
        if routes.weight:
            self._write(replace(routes, weight=0.0))
        return routes.weight

    def promote(self, servers: Sequence[RouteServer]) -> None:
        """Make the canary the stable side.

        Raises:
            ForeignChangeError: the canary in the file is another one, or has not all callers.
            ServerError: the file cannot be written.
        """
        routes = self.read()
        if routes.canary != Side(tuple(servers)) or routes.weight != 100:
            raise ForeignChangeError(f"--routes {self._path}: its canary is not the one that has all callers")
        self._write(Routes(routes.canary))

    def _write(self, routes: Routes) -> None:
        try:
            _replace(self._path, render_routes(routes))
        except OSError as error:
            raise ServerError(f"--routes {self._path}: cannot be written: {error.strerror or error}") from None


def _replace(path: Path, content: str) -> None:
    before = path.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if (before.st_uid, before.st_gid) != (os.getuid(), os.getgid()):
                os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
