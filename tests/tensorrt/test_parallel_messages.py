"""What the ranks tell each other arrives as it was sent, and what is none of it is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest

from trident_backend.engine.protocol import StepBatch
from trident_backend.engine.tensorrt.messages import Channel, Kind, Message, pack_batch, unpack_batch
from trident_ensemble.contract.errors import EngineError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    yield ours, Channel(theirs)
    ours.close()
    theirs.close()


def random_batch(random: np.random.Generator) -> StepBatch:
    def integers(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return random.integers(-(2**31), 2**31, count, np.int64).astype(np.int32)

    sizes = random.integers(0, 40, 8)
    return StepBatch(
        integers(sizes[0]),
        integers(sizes[1]),
        integers(sizes[2]),
        integers(sizes[3]),
        integers(sizes[4]),
        integers(sizes[5]),
        max_context_len=int(random.integers(1, 2**31)),
        logit_rows=integers(sizes[6]),
        block_copies=integers(3 * sizes[7]).reshape(-1, 3),
    )


def test_parallel_messages_steps_arrive_as_they_were_sent() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        batch = random_batch(random)
        message = pack_batch(batch)
        assert message.kind is Kind.STEP
        received = unpack_batch(message.payload)
        for field in fields(StepBatch):
            sent, came = getattr(batch, field.name), getattr(received, field.name)
            np.testing.assert_array_equal(came, sent)
            if isinstance(sent, np.ndarray):
                assert (came.shape, came.dtype) == (sent.shape, sent.dtype)
                assert came.flags.c_contiguous
                assert came.flags.writeable


def test_parallel_messages_a_step_takes_little_more_than_its_integers() -> None:
    zeros = np.zeros(256, np.int32)
    step = StepBatch(zeros, zeros, zeros, np.zeros(257, np.int32), zeros, np.zeros(257, np.int32), 9, zeros)
    assert len(pack_batch(step).payload) <= 4 * (5 * 256 + 2 * 257 + 1) + 64


def test_parallel_messages_messages_keep_their_order_and_their_borders(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    sent = [Message(Kind(1 + size % 7), bytes([size % 256]) * size) for size in (0, 1, 5, 70_000, 3_000_000, 0)]

    def send() -> None:
        for message in sent:
            Channel(ours).send(message)
        ours.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert [channel.receive() for _ in sent] == sent
    assert channel.receive() is None
    sender.join()


@pytest.mark.parametrize(
    "junk",
    [b"GET / HTTP/1.1\r\n", b"TRDR\x00\x00\x00\x00\x00", b"TRDR\x63\x00\x00\x00\x00", b"TRDR\x03\xff\xff\xff\xff"],
)
def test_parallel_messages_what_is_no_message_is_refused(junk: bytes, ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.sendall(junk)
    with pytest.raises(EngineError, match="no message of this version"):
        channel.receive()


def test_parallel_messages_a_message_that_breaks_off_is_the_end(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.sendall(b"TRDR\x03\x10\x00\x00\x00abc")
    ours.close()
    assert channel.receive() is None


def test_parallel_messages_to_send_to_nobody_is_an_error(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.close()
    with pytest.raises(EngineError, match="could not be sent"):
        channel.send(Message(Kind.STOP))


def test_parallel_messages_bytes_that_are_no_step_are_refused() -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        payload = pack_batch(random_batch(random)).payload
        with pytest.raises(EngineError):
            unpack_batch(payload[: int(random.integers(0, len(payload)))])
        with pytest.raises(EngineError):
            unpack_batch(payload + b"\0\0\0\0")
    counts = np.zeros(9, "<u4")
    with pytest.raises(EngineError, match="0 longest"):
        unpack_batch(counts.tobytes())
    counts[6], counts[8] = 1, 2
    with pytest.raises(EngineError, match="2 integers of copies"):
        unpack_batch(counts.tobytes() + bytes(12))
