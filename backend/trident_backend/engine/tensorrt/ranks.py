"""All ranks but the leader, as the leader sees them: their messages, and the first failure among them.

Owns the threads that listen to them. A rank that fails, ends or talks nonsense takes all others with it: what they
compute together cannot go on without it. Never runs a step.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trident_backend.engine.tensorrt.messages import Kind, Message
from trident_backend.engine.tensorrt.rank import COMMAND, Rank
from trident_ensemble.contract.errors import EngineError, EngineLostError

#: Seconds that ranks have to end after they were told to.
_END_S = 10.0
#: Seconds that a rank has to end once its socket has.
_LAST_S = 1.0
#: What a rank that sends no message of a kind has not done.
_DEEDS = {Kind.LOADED: "load", Kind.READY: "become ready for steps"}


class LoadingLimit:
    """A time within which several waits, one after another, must all be over; it begins when it is made.

    Args:
        seconds: until it ends.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())


class Ranks:
    """All ranks other than the leader.

    Args:
        folder: the engine's.
        ordinals: the GPU of each rank; the first is the leader's.
        command: starts a rank, as for `Rank`.

    Raises:
        EngineError: a process cannot be started.
    """

    def __init__(self, folder: Path, ordinals: Sequence[int], command: Sequence[str] = COMMAND) -> None:
        self._changed = threading.Condition()
        self._reached: dict[Rank, Kind | None] = {}
        self._failure = ""
        self._is_stopping = False
        self._is_over = False
        try:
            for rank, ordinal in enumerate(ordinals[1:], 1):
                self._start(folder, rank, ordinal, command)
        except EngineError:
            self.end()
            raise

    def broadcast(self, message: Message) -> None:
        """Send a message to every rank.

        Raises:
            EngineLostError: one of them has failed.
        """
        for rank in self._reached:
            try:
                rank.channel.send(message)
            except EngineError as error:
                # The listener knows more: how the process ended.
                with self._changed:
                    self._changed.wait_for(lambda: self._failure, _END_S)
                self.fail(f"{rank.name}: {error}")
        self.check()

    def wait_for(self, kind: Kind, limit: LoadingLimit) -> None:
        """Wait until every rank has sent a message of this kind.

        Args:
            kind: LOADED or READY.
            limit: after which those that have not sent it count as failed.

        Raises:
            EngineLostError: one of them has failed, or has not sent it in time; names it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._missing(kind), limit.left_s())
            missing = self._missing(kind)
        if missing:
            self.fail(f"{' and '.join(missing)} did not {_DEEDS[kind]} within {limit.seconds:.0f} s")
        self.check()

    def not_ready(self) -> list[str]:
        """Return the names of the ranks that are not ready for steps."""
        with self._changed:
            return self._missing(Kind.READY)

    @property
    def has_failed(self) -> bool:
        """Whether a rank or the leader has failed."""
        return bool(self._failure)

    def check(self) -> None:
        """Raise the first failure, if there is one.

        Raises:
            EngineLostError: one of them has failed; says which, and why.
        """
        if self._failure:
            raise self.lost()

    def lost(self) -> EngineLostError:
        """Return the first failure, as an error."""
        return EngineLostError(f"{self._failure}; the engine cannot go on without it")

    def fail(self, why: str) -> None:
        """Record the first failure, of a rank or of the leader, and end the others, which may wait for it."""
        with self._changed:
            if self._failure or self._is_over:
                return
            self._failure = why
            self._changed.notify_all()
        for rank in self._reached:
            rank.channel.close()

    def stop(self) -> None:
        """Tell every rank to free what it holds and to end; `end` waits for them."""
        with self._changed:
            self._is_stopping = True
        for rank in self._reached:
            with suppress(EngineError):  # it may have ended already
                rank.channel.send(Message(Kind.STOP))

    def end(self) -> None:
        """End every rank, and leave no process behind."""
        with self._changed:
            self._is_over = True
        deadline = time.monotonic() + (_END_S if self._is_stopping and not self._failure else 0.0)
        for rank in self._reached:
            rank.wait(max(0.0, deadline - time.monotonic()))
        for rank in self._reached:
            rank.channel.close()
        for rank in self._reached:
            if rank.end(_LAST_S) is None:
                logging.getLogger(__name__).warning("%s does not end, though it was killed", rank.name)

    def _missing(self, kind: Kind) -> list[str]:
        """Return the names of the ranks whose last message is of another kind."""
        return [rank.name for rank, reached in self._reached.items() if reached != kind]

    def _start(self, folder: Path, number: int, ordinal: int, command: Sequence[str]) -> None:
        rank = Rank(number, ordinal, command)
        self._reached[rank] = None
        # The rank's working directory is another.
        start = {"folder": str(folder.absolute()), "rank": number, "ordinal": ordinal}
        with suppress(EngineError):  # it may have ended already; the listener says how
            rank.channel.send(Message(Kind.START, json.dumps(start).encode()))
        threading.Thread(target=self._listen, args=(rank,), name=f"trident-rank-{number}", daemon=True).start()

    def _listen(self, rank: Rank) -> None:
        try:
            while (message := rank.channel.receive()) is not None:
                if message.kind is Kind.FAILED:
                    self.fail(f"{rank.name}: {message.text}")
                    return
                with self._changed:
                    self._reached[rank] = message.kind
                    self._changed.notify_all()
            status = rank.end(_END_S if self._is_stopping else _LAST_S)
            if status != 0 or not self._is_stopping:
                self.fail(rank.exit_message(status))
        except EngineError as error:
            self.fail(f"{rank.name}: {error}")
        except BaseException as error:  # without a listener its rank would be waited for without end
            self.fail(f"{rank.name} cannot be listened to: {error!r}")
