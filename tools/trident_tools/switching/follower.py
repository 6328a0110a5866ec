"""The versions of a running server's engines, kept as its repository has them.

Owns which version of each core is served, and the one switch that may be under way. Never loads anything itself, and
never blocks: whoever looks after the server calls `look` a few times a second.

A version is noticed when its folder has been complete and unchanged from one look to the next. While it loads, the old
one serves. From the moment at which Triton has loaded it, new requests are its; Triton ends the old one with the last
of its requests. Whatever goes wrong before that changes nothing, and the same folder is not tried again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, TridentError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest, read_manifest

#: Seconds between two looks at the repository, and at what is left of an old version.
LOOK_S = 2.0
#: Seconds for which no process of a version that Triton calls LOADING has lived: Triton would wait without a limit.
LOST_S = 10.0

#: Names, sizes and times of the files of a version.
Signature = tuple[tuple[str, int, int], ...]


class Load(Protocol):
    """A load that has begun; an `EngineLoad` is one."""

    def failure(self) -> str | None:
        """Return why the engine is not loaded, empty if it is; None while that is open."""
        ...

    def stop(self) -> None:
        """Wait for it no longer."""
        ...


class Server(Protocol):
    """A server as its follower needs it; a `RunningServer` is one."""

    def show(self, names: ModelNames, version: int, engine: Path) -> None:
        """Let the server see one version of a core alone, at its next look."""
        ...

    def load(self, names: ModelNames, engine: Path) -> Load:
        """Begin to load what it sees."""
        ...

    def is_unloading(self, names: ModelNames, version: int) -> bool:
        """Return whether a version still has requests; raises OSError where the server does not answer."""
        ...

    def is_loading(self, names: ModelNames, version: int) -> bool:
        """Return whether the server says that it loads a version; raises OSError where it does not answer."""
        ...

    def is_ready(self, names: ModelNames, version: int) -> bool:
        """Return whether a version serves new requests; raises OSError where the server does not answer."""
        ...

    def has_process(self, names: ModelNames, version: int) -> bool:
        """Return whether a process of a version runs."""
        ...


@dataclass
class _Model:
    """One model: the version that is served, the one before while it has requests, and what was seen of the next."""

    names: ModelNames
    version: int
    manifest: Manifest
    ending: int | None = None
    seen: Signature | None = None
    refused: Signature | None = None


@dataclass
class _Switch:
    """A switch under way."""

    model: _Model
    version: int
    manifest: Manifest
    signature: Signature
    load: Load
    began: float
    last_alive: float


class VersionFollower:
    """Follows the repository of one server.

    Args:
        repository: what is followed.
        models: the versions with which the server is started.
        server: the server.
        check: refuses an engine that cannot take another's place; raises TridentError.
        say: is called with one line about what happens.
        complain: is called with what went wrong, which must be shown in any case.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        repository: Path,
        models: Mapping[ModelNames, Manifest],
        server: Server,
        *,
        check: Callable[[ModelNames, Manifest, Manifest], None],
        say: Callable[[str], None],
        complain: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._server = server
        self._check = check
        self._say = say
        self._complain = complain
        self._clock = clock
        self._models = []
        for names, manifest in models.items():
            engine = layout.newest_version(repository / names.core)
            self._models.append(_Model(names, int(engine.name), manifest))
            server.show(names, int(engine.name), engine)
        self._switch: _Switch | None = None
        self._is_stuck = False
        self._next_look = 0.0

    def look(self) -> None:
        """Go on with the switch under way, or look for the next."""
        if self._is_stuck:
            return
        if self._switch is not None:
            self._tend(self._switch)
            return
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for model in self._models:
            if self._may_switch(model) and self._look_at(model):
                return

    def server_ended(self) -> None:
        """Note that the server has ended: the next one begins with the versions that were served.

        One that has been put aside meanwhile is begun with, too, and followed by the next; in place of one that has
        been removed, the newest there is.
        """
        switch, self._switch = self._switch, None
        self._is_stuck = False
        if switch is not None:
            switch.load.stop()
            self._refuse(switch.model, switch.version, switch.signature, "the server ended while it loaded it")
        for model in self._models:
            model.ending = None
            if not self._served_folder(model).is_dir():
                self._take_newest(model)
            self._server.show(model.names, model.version, self._served_folder(model))

    def _may_switch(self, model: _Model) -> bool:
        """Return whether nothing is left of the version before."""
        if model.ending is None:
            return True
        try:
            if self._server.is_unloading(model.names, model.ending):
                return False
        except OSError:
            return False
        self._say(f"Version {model.ending} of {model.names.core} has ended.")
        model.ending = None
        return True

    def _look_at(self, model: _Model) -> bool:
        """Begin a switch of a model if its repository has another version than the server; return whether it did."""
        try:
            engine = layout.newest_version(self._repository / model.names.core)
            signature = _signature(engine)
        except (ArtifactError, OSError):  # being moved right now, or not there: the server needs none of it
            return False
        before, model.seen = model.seen, signature
        version = int(engine.name)
        if version == model.version:
            model.refused = None
            return False
        if signature is None or signature == model.refused or signature != before:
            return False
        try:
            manifest = read_manifest(engine)
            self._check(model.names, model.manifest, manifest)
            self._server.show(model.names, version, engine)
            load = self._server.load(model.names, engine)
        except (TridentError, OSError) as error:
            self._refuse(model, version, signature, str(error))
            return False
        now = self._clock()
        self._switch = _Switch(model, version, manifest, signature, load, now, now)
        self._say(f"Loading version {version} of {model.names.core}; version {model.version} serves meanwhile.")
        return True

    def _tend(self, switch: _Switch) -> None:
        failure = switch.load.failure()
        model, now = switch.model, self._clock()
        if failure is None:
            if self._server.has_process(model.names, switch.version) or not self._is_loading(switch):
                switch.last_alive = now
            if now - switch.last_alive > LOST_S:
                switch.load.stop()
                self._switch, self._is_stuck = None, True
                self._refuse(
                    model,
                    switch.version,
                    switch.signature,
                    "its process has ended, and Triton goes on waiting for it; no other version can be loaded until "
                    "the server is started again",
                )
            return
        if failure:
            try:
                is_switched = self._server.is_ready(model.names, switch.version)
            except OSError:  # until it answers or ends, nobody knows which version it serves
                return
            if not is_switched:
                self._switch = None
                self._refuse(model, switch.version, switch.signature, failure)
                return
            self._complain(
                f"version {switch.version} of {model.names.core} is served, and {model.names.ensemble} has not been "
                f"loaded again, so clients see the model card of before until the server is started again: {failure}"
            )
        self._switch = None
        model.ending, model.version, model.manifest = model.version, switch.version, switch.manifest
        model.refused = None
        self._say(
            f"Version {switch.version} of {model.names.core} serves new requests, after {now - switch.began:.1f} s; "
            f"version {model.ending} ends with those that it has."
        )

    def _is_loading(self, switch: _Switch) -> bool:
        try:
            return self._server.is_loading(switch.model.names, switch.version)
        except OSError:
            return False

    def _refuse(self, model: _Model, version: int, signature: Signature, reason: str) -> None:
        model.refused = signature
        self._server.show(model.names, model.version, self._served_folder(model))
        self._complain(
            f"version {version} of {model.names.core} is not served: {reason}\n"
            f"Version {model.version} goes on. The folder is tried again when it changes."
        )

    def _served_folder(self, model: _Model) -> Path:
        """Return where the version that is served lies: it may have been put aside for the next one."""
        core = self._repository / model.names.core
        aside = layout.aside_folder(core, model.version)
        return aside if aside.is_dir() else core / str(model.version)

    def _take_newest(self, model: _Model) -> None:
        """Let the next server begin with the newest version that can be read, with one that was refused at last."""
        core = self._repository / model.names.core
        newest_first = reversed(layout.version_numbers(core))
        for version in sorted(newest_first, key=lambda number: _signature(core / str(number)) == model.refused):
            with contextlib.suppress(ArtifactError):
                model.manifest, model.version = read_manifest(core / str(version)), version
                return


def _signature(engine: Path) -> Signature | None:
    """Return what tells one state of a version from another; None as long as it has no manifest."""
    if not (engine / layout.MANIFEST_FILE).is_file():
        return None
    files = sorted(path for path in engine.rglob("*") if path.is_file())
    stats = [(path.relative_to(engine).as_posix(), path.stat()) for path in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
