"""The routes file of gateways, as a rollout changes it.

Owns its replacement: gateways find the old file or the new one, with the same owner and mode, and of two commands one
waits for the other. Never changes the stable side but when the canary takes its place, and never touches a canary that
somebody else has put there, nor raises a weight that somebody else has set.
"""

from __future__ import annotations

import fcntl
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trident_ensemble.contract.errors import ConfigError, ServerError, TridentError
from trident_ensemble.contract.routes import Routes, RouteServer, Side, parse_routes, render_routes

_LOCK_LIMIT_S = 10.0
_POLL_S = 0.02


class ForeignChangeError(TridentError):
    """Somebody else has changed what a rollout has put in force."""


class RoutesFile:
    """One routes file.

    Args:
        path: of the file. A link is followed, so that the file stays where it is. Beside it lies the lock, which is
            held from reading the file to replacing it.
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
        with self._locked():
            self.check_free()
            self._write(Routes(self.read().stable, Side(tuple(servers)), 0.0))

    def set_weight(self, servers: Sequence[RouteServer], weight: float, before: float) -> None:
        """Give the canary a weight.

        Args:
            servers: the canary's.
            weight: in percent.
            before: the weight that this rollout has set last. One that is found to differ is somebody else's, and is
                not raised.

        Raises:
            ForeignChangeError: the canary in the file is another one, or somebody else has set its weight.
            ServerError: the file cannot be written.
        """
        with self._locked():
            routes = self.read()
            if routes.canary != Side(tuple(servers)):
                raise ForeignChangeError(f"--routes {self._path}: its canary is not the one of this rollout any more")
            if weight > routes.weight and not math.isclose(routes.weight, before):
                raise ForeignChangeError(
                    f"--routes {self._path}: its canary has {routes.weight:g} %, which this rollout has not set"
                )
            if routes.weight != weight:
                self._write(replace(routes, weight=weight))

    def take_back(self) -> float:
        """Take all callers from whatever canary there is; return the weight that it had.

        Raises:
            ConfigError: the file cannot be understood.
            ServerError: the file cannot be written.
        """
        with self._locked():
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
        with self._locked():
            routes = self.read()
            if routes.canary != Side(tuple(servers)) or routes.weight != 100:
                raise ForeignChangeError(f"--routes {self._path}: its canary is not the one that has all callers")
            self._write(Routes(routes.canary))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the one that changes the file while the block runs.

        Raises:
            ServerError: another process holds the lock for too long, or there can be none.
        """
        if not self._path.exists():
            # Nothing is left beside a file that is not there.
            self.read()
        until = time.monotonic() + _LOCK_LIMIT_S
        try:
            with self._path.with_name(f"{self._path.name}.lock").open("a", encoding="ascii") as lock:
                while True:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > until:
                            raise ServerError(
                                f"--routes {self._path}: another process has held its lock for {_LOCK_LIMIT_S:g} s"
                            ) from None
                        time.sleep(_POLL_S)
                yield
        except OSError as error:
            raise ServerError(f"--routes {self._path}: cannot be locked: {error.strerror or error}") from None

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
