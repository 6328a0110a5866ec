"""The shared table: what one end writes the other reads, and strangers' acknowledgements never count."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from trident_ensemble.acknowledgements import GONE, NUM_COLUMNS, AcknowledgementTable, Acknowledger, encode


@pytest.fixture
def table() -> Iterator[AcknowledgementTable]:
    made = AcknowledgementTable(num_slots=4)
    yield made
    made.close()


def _path(table: AcknowledgementTable) -> Path:
    return Path(f"/dev/shm/trident-{table.table_id:016x}")  # noqa: S108


def read(table: AcknowledgementTable, slot: int, generation: int) -> int:
    assert generation
    return table.num_acknowledged([slot])[0]


def _acknowledge(table_id: int, instance: int, slot: int, acknowledgement: int) -> None:
    Acknowledger(instance).acknowledge(table_id, slot, acknowledgement)


def test_what_is_written_is_read(table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    assert read(table, slot, generation) == 0
    Acknowledger(0).acknowledge(table.table_id, slot, encode(generation, 3))
    assert read(table, slot, generation) == 3


def test_across_processes(table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    process = multiprocessing.get_context("spawn").Process(
        target=_acknowledge, args=(table.table_id, 1, slot, encode(generation, 7))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read(table, slot, generation) == 7


def test_the_newest_of_all_instances_counts(table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    for instance, num_chunks in ((0, 5), (1, 6), (2, 4), (0, 3)):
        Acknowledger(instance).acknowledge(table.table_id, slot, encode(generation, num_chunks))
    assert read(table, slot, generation) == 6


def test_an_old_stream_in_the_same_row_does_not_count(table: AcknowledgementTable) -> None:
    slot, old = table.open()
    table.release(slot)
    again, new = table.open()
    assert again == slot
    assert new != old
    Acknowledger(0).acknowledge(table.table_id, slot, encode(old, 9))
    assert read(table, slot, new) == 0
    Acknowledger(0).acknowledge(table.table_id, slot, encode(new, 1))
    Acknowledger(1).acknowledge(table.table_id, slot, encode(old, 10))
    assert read(table, slot, new) == 1


def test_a_forged_acknowledgement_counts_for_nobody(table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    Acknowledger(0).acknowledge(table.table_id, slot, 2**63 - 1)
    assert read(table, slot, generation) == 0
    Acknowledger(0).acknowledge(table.table_id, slot, encode(generation, 2))
    assert read(table, slot, generation) == 2


def test_tables_left_behind_are_removed_and_those_in_use_are_not(table: AcknowledgementTable) -> None:
    orphan = Path("/dev/shm/trident-00000000000000aa")  # noqa: S108
    orphan.write_bytes(b"left behind")
    other = AcknowledgementTable(num_slots=1)
    assert not orphan.exists()
    assert _path(table).exists()
    other.close()


def test_gone_outweighs_every_number(table: AcknowledgementTable) -> None:
    slot, generation = table.open()
    Acknowledger(0).acknowledge(table.table_id, slot, encode(generation, 1) | GONE)
    Acknowledger(1).acknowledge(table.table_id, slot, encode(generation, 2))
    assert read(table, slot, generation) == GONE
    table.release(slot)
    _, following = table.open()
    assert read(table, slot, following) == 0


def test_rows_are_apart(table: AcknowledgementTable) -> None:
    streams = [table.open() for _ in range(4)]
    assert len({slot for slot, _ in streams}) == 4
    Acknowledger(NUM_COLUMNS + 1).acknowledge(table.table_id, streams[2][0], encode(streams[2][1], 2))
    assert [read(table, *stream) for stream in streams] == [0, 0, 2, 0]


@pytest.mark.parametrize("slot", [-1, 4, 1 << 40])
def test_a_row_outside_the_table_is_ignored(table: AcknowledgementTable, slot: int) -> None:
    stream = table.open()
    Acknowledger(0).acknowledge(table.table_id, slot, encode(1, 1))
    assert read(table, *stream) == 0


@pytest.mark.parametrize("table_id", [0, -5, 12345, (1 << 63) - 1])
def test_a_table_that_is_not_there_is_ignored(table_id: int) -> None:
    Acknowledger(0).acknowledge(table_id, 0, encode(1, 1))


def test_the_file_is_private_and_goes_with_the_core(table: AcknowledgementTable) -> None:
    mode = _path(table).stat()
    assert stat.S_IMODE(mode.st_mode) == 0o600
    assert mode.st_uid == os.getuid()
    slot, generation = table.open()
    acknowledger = Acknowledger(0)
    acknowledger.acknowledge(table.table_id, slot, encode(generation, 1))
    table.close()
    assert not _path(table).exists()
    acknowledger.acknowledge(table.table_id, slot, encode(generation, 2))
    table.close()
