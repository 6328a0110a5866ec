"""A tritonserver that `trident serve` runs, as a follower of versions sees it.

Owns how its view of the repository is changed, how it is told to load, and where its models' states are read. Never
decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.settings import CoreSettings
from trident_tools.server.model_control import ModelControl
from trident_tools.server.overlay import show_version
from trident_tools.server.stubs import StubWatch
from trident_tools.server.triton_server import Listen, local_address
from trident_tools.server.triton_status import TritonStatus
from trident_tools.switching.engine_load import EngineLoad, LoadOrder


class RunningServer:
    """The servers that one command starts one after another.

    Args:
        overlay: the repository that they are given, with the settings of every core laid over.
        settings: of each core.
        listen: the addresses at which they listen.
        control: opens their control of models.
    """

    def __init__(
        self, overlay: Path, settings: Mapping[ModelNames, CoreSettings], listen: Listen, control: ModelControl
    ) -> None:
        self._overlay = overlay
        self._settings = settings
        self._control = control
        self._status = TritonStatus(listen, control.headers)
        host = local_address(listen.host)
        self._url = f"[{host}]:{listen.grpc_port}" if ":" in host else f"{host}:{listen.grpc_port}"
        self._stubs: StubWatch | None = None

    def started(self, pid: int) -> None:
        """Take note of the process of the server that has been started."""
        self._stubs = StubWatch(pid)

    def show(self, names: ModelNames, version: int, engine: Path) -> None:
        """Let the server see one version of a core alone, at its next look."""
        show_version(self._overlay, names, version, engine)

    def load(self, names: ModelNames, engine: Path) -> EngineLoad:
        """Begin to load what it sees: the core, and the ensemble for its card."""
        models = names.core, names.ensemble
        gpus = self._settings[names].gpu
        return EngineLoad(LoadOrder(self._url, self._control.headers, models, str(engine), gpus))

    def is_unloading(self, names: ModelNames, version: int) -> bool:
        """Return whether a version still has requests; raises OSError where the server does not answer."""
        return self._state(names, version) == "UNLOADING"

    def is_loading(self, names: ModelNames, version: int) -> bool:
        """Return whether the server says that it loads a version; raises OSError where it does not answer."""
        return self._state(names, version) == "LOADING"

    def is_ready(self, names: ModelNames, version: int) -> bool:
        """Return whether a version serves new requests; raises OSError where the server does not answer."""
        return self._state(names, version) == "READY"

    def has_process(self, names: ModelNames, version: int) -> bool:
        """Return whether a process of a version runs."""
        if self._stubs is None:
            return False
        self._stubs.discover()
        return any((stub.model, stub.version) == (names.core, str(version)) for stub in self._stubs.living())

    def _state(self, names: ModelNames, version: int) -> str | None:
        return self._status.model_states().get((names.core, str(version)))
