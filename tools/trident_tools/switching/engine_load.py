"""A process that checks an engine and has a running tritonserver load it.

Owns the order: digests first, so that Triton never sees a damaged engine; then whether there is room for two; then the
call, which returns when Triton has loaded the engine or has given up.

The call goes over gRPC. tritonserver answers it when it has loaded, and until then the thread that took it does nothing
else: of HTTP that is one of eight, with all its connections and their streams; of gRPC one that has no streams.
It is a process of its own because `trident serve` has one thread, which looks after the server meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.manifest import read_manifest
from trident_tools.building.memory_use import check_room, memory_use

#: Before the name of a header that opens a part of Triton's API over gRPC.
_GRPC_HEADER = "triton-grpc-protocol-"
_STOP_S = 5.0


@dataclass(frozen=True)
class LoadOrder:
    """The order to load an engine.

    Args:
        url: HOST:PORT of tritonserver's gRPC.
        headers: that open its control of models.
        models: the names of what is to be loaded, one after another.
        engine: the engine's folder.
        gpus: of the core's settings.
    """

    url: str
    headers: Mapping[str, str]
    models: Sequence[str]
    engine: str
    gpus: Sequence[int] = ()


class EngineLoad:
    """The process that carries out an order; begins at once.

    Args:
        order: what is to be loaded.
    """

    def __init__(self, order: LoadOrder) -> None:
        self._failure: str | None = None
        self._process = subprocess.Popen(  # noqa: S603 (a list, no shell)
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(json.dumps(asdict(order)).encode())

    def failure(self) -> str | None:
        """Return why the engine is not loaded, empty if it is; None while that is open."""
        status = self._process.poll()
        if self._failure is None and status is not None:
            said = self._close()
            self._failure = "" if not status else said or f"the process that loads it ended with status {status}"
        return self._failure

    def stop(self) -> None:
        """End the process, if it runs; what Triton has begun goes on."""
        self._process.kill()
        self._process.wait(_STOP_S)
        if self._failure is None:
            self._close()
            self._failure = "it was stopped"

    def _close(self) -> str:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            return pipe.read().decode("utf-8", "replace").strip()


def carry_out(order: LoadOrder) -> None:
    """Check an engine and have it loaded.

    Raises:
        TridentError: it is damaged, or there is no room for it.
        InferenceServerException: Triton has not loaded it.
    """
    folder = Path(order.engine)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    check_room(memory_use(f"version {folder.name}", manifest, order.gpus))
    from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415 (half a second that a refusal need not take)

    headers = {f"{_GRPC_HEADER}{name}": value for name, value in order.headers.items()}
    client = InferenceServerClient(order.url)
    try:
        for model in order.models:
            client.load_model(model, headers=headers)
    finally:
        client.close()


def main() -> int:
    """Carry out the order on standard input; print why it failed, and return 1."""
    order = LoadOrder(**json.load(sys.stdin))
    try:
        carry_out(order)
    except TridentError as error:
        print(error)
        return 1
    except Exception as error:  # of the client or of the files: the one who waits must hear of it
        text = getattr(error, "message", lambda: None)() or repr(error)
        # Triton tells the traceback of the model as well.
        print(" ".join(text.partition("\n\nAt:")[0].split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
