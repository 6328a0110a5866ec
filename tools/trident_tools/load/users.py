"""The users that locust spawns, and the course of each of their requests.

Owns when a request is sent, and what becomes of its record. Import it in a process that locust has patched. Never knows
a protocol, and never computes a figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gevent.event
import gevent.pool
import numpy as np
from locust import User, constant, task
from locust.exception import StopUser

from trident_tools.load.client_records import UNFINISHED, ClientRequestRecord, ClientStream
from trident_tools.load.prompts import Prompt
from trident_tools.load.target import Client, FailedRequestError, Service

#: Seconds after which a user whose request failed sends the next one.
RETRY_SECONDS = 1.0


class Sender:
    """Sends the requests of one stage, and keeps their records.

    Args:
        service: the server.
        prompts: the prompts of the load, taken in order.
    """

    def __init__(self, service: Service, prompts: Iterator[Prompt]) -> None:
        self._service = service
        self._prompts = prompts
        self.closing = gevent.event.Event()
        self.records: list[ClientRequestRecord] = []
        self.running: set[ClientStream] = set()
        self.ended: list[tuple[ClientStream, bool]] = []

    def client(self) -> Client:
        """Return a connection for one user."""
        return self._service.client()

    def send(self, client: Client, scheduled_at: float | None) -> bool:
        """Send one request, wait for its end and keep its record; return whether it was answered.

        Args:
            client: the connection, which nothing else uses meanwhile.
            scheduled_at: when the request should have been sent; None for now.
        """
        prompt = next(self._prompts)
        now = time.perf_counter()
        stream = ClientStream(now if scheduled_at is None else scheduled_at, now)
        self.running.add(stream)
        error = UNFINISHED
        try:
            client.ask(prompt, stream)
            error = "" if stream.chunk_times else "the answer has no token"
        except FailedRequestError as failure:
            error = str(failure)
        except Exception as failure:
            # A broken answer, whatever is broken about it, is the server's failure and does not end the load.
            error = f"{type(failure).__name__}: {failure}"
        finally:
            self.running.discard(stream)
            self.ended.append((stream, not error))
            self.records.append(stream.record(error))
        return not error


def closed_loop_user(sender: Sender) -> type[User]:
    """Return a class of users who each send their next request when their last one has ended."""

    class ClosedLoopUser(User):
        wait_time = constant(0)

        def on_start(self) -> None:
            self._client = sender.client()

        def on_stop(self) -> None:
            self._client.close()

        @task
        def ask(self) -> None:
            if not sender.send(self._client, None):
                sender.closing.wait(RETRY_SECONDS)
            if sender.closing.is_set():
                raise StopUser

    return ClosedLoopUser


def open_loop_user(sender: Sender, rate: float, random: np.random.Generator) -> type[User]:
    """Return a class of one user who sends requests as a Poisson process of `rate` per second."""

    class OpenLoopUser(User):
        def on_start(self) -> None:
            self._requests = gevent.pool.Group()
            self._idle: list[Client] = []

        def on_stop(self) -> None:
            self._requests.kill()
            for client in self._idle:
                client.close()

        @task
        def ask(self) -> None:
            scheduled_at = time.perf_counter()
            while True:
                scheduled_at += random.exponential(1 / rate)
                if sender.closing.wait(max(0.0, scheduled_at - time.perf_counter())):
                    break
                self._requests.spawn(self._send, scheduled_at)
            self._requests.join()
            raise StopUser

        def _send(self, scheduled_at: float) -> Any:
            client = self._idle.pop() if self._idle else sender.client()
            try:
                sender.send(client, scheduled_at)
            finally:
                self._idle.append(client)

    return OpenLoopUser
