"""The request log: one line a request, and nobody waits for it."""

from __future__ import annotations

import io
import json
import os
import threading
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from trident_gateway.observing import request_log
from trident_gateway.observing.request_log import RequestLog, RequestRecord


def test_request_log_has_a_line_for_each_record_in_order() -> None:
    file = io.BytesIO()
    drops: list[None] = []
    log = RequestLog(file, lambda: drops.append(None))
    for number in range(1000):
        log.write(
            RequestRecord(
                request_id=f"r{number}", started_s=1.5, ttft_s=0.0123, duration_s=2.0, num_input_tokens=number
            )
        )
    log.close()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["request_id"] for line in lines] == [f"r{number}" for number in range(1000)]
    assert lines[7]["time"] == "1970-01-01T00:00:01.500Z"
    assert (lines[7]["input_tokens"], lines[7]["ttft_ms"], lines[7]["duration_ms"]) == (7, 12.3, 2000.0)
    assert len(lines[0]) == len(fields(RequestRecord))
    assert not drops


def test_request_log_drops_and_counts_what_a_slow_pipe_does_not_take() -> None:
    read, write = os.pipe()
    drops: list[None] = []
    with os.fdopen(write, "wb", buffering=0) as pipe, os.fdopen(read, "rb") as reader:
        log = RequestLog(pipe, lambda: drops.append(None), max_waiting=100)
        for number in range(5000):
            log.write(RequestRecord(request_id=f"{number}"))
        assert drops
        written: list[bytes] = []
        thread = threading.Thread(target=lambda: written.extend(reader))
        thread.start()
        log.close()
        pipe.close()
        thread.join(60)
    assert len(written) + len(drops) == 5000
    assert all(json.loads(line) for line in written)


def test_request_log_counts_what_a_broken_pipe_does_not_take() -> None:
    read, write = os.pipe()
    os.close(read)
    drops: list[None] = []
    with os.fdopen(write, "wb", buffering=0) as pipe:
        log = RequestLog(pipe, lambda: drops.append(None))
        log.write(RequestRecord())
        log.close()
    assert drops


class SmallDisk:
    """Takes so many bytes, and more when there is room again."""

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free
        self.content = b""

    def write(self, data: bytes, /) -> int:
        if not self.num_free:
            raise OSError(28, "No space left on device")
        taken = data[: min(self.num_free, 7)]
        self.num_free -= len(taken)
        self.content += taken
        return len(taken)


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 3)), max_size=8))
def test_request_log_on_a_disk_that_fills_has_whole_lines_and_counts_the_others(history: list[tuple[int, int]]) -> None:
    """Of lines that a full disk has taken a part of, that part stands alone on its line."""
    disk, drops, num_records = SmallDisk(0), list[None](), 0
    log = RequestLog(disk, lambda: drops.append(None))
    log.close()  # its thread; the test writes itself
    for num_free, count in [*history, (1 << 20, 1)]:
        disk.num_free = num_free
        records = [RequestRecord(request_id=f"r{num_records + number}") for number in range(count)]
        num_records += count
        drops += [None] * log._put([request_log._line(record) for record in records])
    whole = [line for line in disk.content.splitlines() if line.endswith(b"}")]
    assert all(json.loads(line)["request_id"] for line in whole)
    assert len(whole) + len(drops) == num_records
    assert json.loads(whole[-1])["request_id"] == f"r{num_records - 1}"
