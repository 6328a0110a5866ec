"""One rank of a divided network, but the first: a process of its own, which the first one starts.

    python -m trident_backend.engine.tensorrt.rank_process DESCRIPTOR

Owns the rank's end of the socket at the inherited DESCRIPTOR. Computes the same steps as the leader, on its own GPU,
and throws their logits away. Ends at once when the socket does, whatever it is doing: a rank never outlives its leader.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from trident_backend.engine.protocol import StepBatch
from trident_backend.engine.tensorrt import loading
from trident_backend.engine.tensorrt.messages import Channel, Kind, Message, unpack_batch
from trident_backend.engine.tensorrt.parallel import load_rank
from trident_ensemble.contract.errors import EngineError, TridentError

_EXIT_FAILED = 1
_EXIT_LEADER_GONE = 3


class RankEngine(Protocol):
    """A rank's part of the engine."""

    def execute(self, batch: StepBatch) -> object:
        """Compute one step; return when it has been computed."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Inbox:
    """Receives the leader's messages on a thread of its own, so that the end of the stream is seen at once.

    Args:
        channel: to the leader.
        on_end: called on that thread when the stream ends.
    """

    def __init__(self, channel: Channel, on_end: Callable[[], None]) -> None:
        self._channel = channel
        self._on_end = on_end
        self._messages: queue.SimpleQueue[Message | EngineError] = queue.SimpleQueue()
        threading.Thread(target=self._take, name="trident-leader", daemon=True).start()

    def get(self, *kinds: Kind) -> Message:
        """Wait for the next message and return it.

        Raises:
            EngineError: it is not one of these kinds, or no message at all.
        """
        message = self._messages.get()
        if isinstance(message, EngineError):
            raise message
        if message.kind not in kinds:
            raise EngineError(f"{message.kind.name} came from the leader out of turn")
        return message

    def _take(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                self._messages.put(message)
        except EngineError as error:
            self._messages.put(error)
            return
        except BaseException as error:  # `get` would wait without end
            self._messages.put(EngineError(f"the leader cannot be listened to: {error!r}"))
            return
        self._on_end()


#: Loads a rank's part: folder, rank, the GPU's ordinal, and what gives it the communicator's unique id when it is ready
#: to join the others.
Loader = Callable[[Path, int, int, Callable[[], bytes]], RankEngine]


def serve(stream: socket.socket, load: Loader, on_end: Callable[[], None]) -> int:
    """Serve as a rank until the leader says stop.

    Args:
        stream: to the leader.
        load: of this rank's part.
        on_end: called on another thread when the stream ends; it should not return.

    Returns:
        the process's exit status.
    """
    channel = Channel(stream)
    inbox = Inbox(channel, on_end)
    try:
        start = json.loads(inbox.get(Kind.START).payload)

        def unique_id() -> bytes:
            channel.send(Message(Kind.LOADED))
            return inbox.get(Kind.JOIN).payload

        engine = load(Path(start["folder"]), start["rank"], start["ordinal"], unique_id)
        channel.send(Message(Kind.READY))
        while (message := inbox.get(Kind.STEP, Kind.STOP)).kind is Kind.STEP:
            engine.execute(unpack_batch(message.payload))
        engine.close()
    except Exception as error:  # whatever it is, the leader must know
        text = str(error) if isinstance(error, TridentError) else repr(error)
        channel.send(Message(Kind.FAILED, text.encode(errors="backslashreplace")))
        return _EXIT_FAILED
    return 0


def load_part(folder: Path, rank: int, ordinal: int, unique_id: Callable[[], bytes]) -> RankEngine:
    """Load the rank's part on its GPU."""
    return load_rank(folder, rank, ordinal, unique_id, loading.load_part)


def main(descriptor: int, load: Loader) -> None:
    """Serve, and exit without waiting for threads or destructors that the GPU may hold.

    Args:
        descriptor: of the socket to the leader.
        load: of this rank's part.
    """
    # Both are meant for the leader, which ends its ranks itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = serve(socket.socket(fileno=descriptor), load, lambda: os._exit(_EXIT_LEADER_GONE))
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), load_part)
