"""The shared table: what one end writes the other reads, and strangers' acknowledgements never count."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trident_ensemble import acknowledgements
from trident_ensemble.acknowledgements import GONE, NUM_INSTANCES, AcknowledgementTable, Acknowledger, table_folder
from trident_ensemble.contract.errors import PlanError


@pytest.fixture
def table() -> Iterator[AcknowledgementTable]:
    made = AcknowledgementTable(num_columns=4)
    yield made
    made.close()


def _file(table: AcknowledgementTable) -> Path:
    return table_folder(table.table_id) / "acknowledgements"


def read(table: AcknowledgementTable, column: int, secret: int) -> int:
    assert secret
    return table.num_acknowledged([column])[0]


def _acknowledge(table_id: int, instance: int, column: int, secret: int, num_chunks: int) -> None:
    Acknowledger(instance).acknowledge(table_id, column, secret, num_chunks)


def test_acknowledgements_what_is_written_is_read(table: AcknowledgementTable) -> None:
    column, secret = table.open()
    assert read(table, column, secret) == 0
    Acknowledger(0).acknowledge(table.table_id, column, secret, 3)
    assert read(table, column, secret) == 3


def test_acknowledgements_across_processes(table: AcknowledgementTable) -> None:
    column, secret = table.open()
    process = multiprocessing.get_context("spawn").Process(
        target=_acknowledge, args=(table.table_id, 1, column, secret, 7)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read(table, column, secret) == 7


def test_acknowledgements_the_newest_of_all_instances_counts(table: AcknowledgementTable) -> None:
    column, secret = table.open()
    for instance, num_chunks in ((0, 5), (1, 6), (2, 4), (0, 3)):
        Acknowledger(instance).acknowledge(table.table_id, column, secret, num_chunks)
    assert read(table, column, secret) == 6


def test_acknowledgements_an_old_stream_in_the_same_row_does_not_count(table: AcknowledgementTable) -> None:
    column, old = table.open()
    table.release(column)
    again, new = table.open()
    assert again == column
    assert new != old
    Acknowledger(0).acknowledge(table.table_id, column, old, 9)
    assert read(table, column, new) == 0
    Acknowledger(0).acknowledge(table.table_id, column, new, 1)
    Acknowledger(1).acknowledge(table.table_id, column, old, 10)
    assert read(table, column, new) == 1


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_acknowledgements_nobody_reaches_a_stream_whose_secret_he_does_not_have(data: st.DataObject) -> None:
    """Against a model of the rule: what a stream is told is what its own chunks' bearers said, and nothing else."""
    table = AcknowledgementTable(num_columns=3)
    try:
        acknowledgers = [Acknowledger(number) for number in range(2)]
        streams: dict[int, int] = {}
        old_secrets = [1]
        said: dict[int, list[int]] = {}
        for _ in range(data.draw(st.integers(1, 25))):
            move = data.draw(st.sampled_from(["open", "release", "own", "forged"]))
            if move == "open" and len(streams) < 3:
                column, secret = table.open()
                assert column not in streams
                streams[column], said[column] = secret, [0, 0]
            elif move == "release" and streams:
                column = data.draw(st.sampled_from(sorted(streams)))
                old_secrets.append(streams.pop(column))
                table.release(column)
            elif move == "own" and streams:
                column = data.draw(st.sampled_from(sorted(streams)))
                number = data.draw(st.sampled_from([1, 2, 3, 99, GONE]))
                instance = data.draw(st.integers(0, 1))
                acknowledgers[instance].acknowledge(table.table_id, column, streams[column], number)
                said[column][instance] = number
            elif move == "forged":
                column = data.draw(st.integers(-2, 4))
                others = [secret for other, secret in streams.items() if other != column]
                secret = data.draw(st.sampled_from([*others, *old_secrets, 0, -1, 2**62, 2**63 - 1]))
                number = data.draw(st.sampled_from([0, 1, 7, GONE, GONE + 1, -1, 2**63 - 1]))
                data.draw(st.sampled_from(acknowledgers)).acknowledge(table.table_id, column, secret, number)
            assert table.num_acknowledged(sorted(streams)) == [max(said[column]) for column in sorted(streams)]
    finally:
        table.close()


def test_acknowledgements_another_stream_s_secret_and_numbers_out_of_range_change_nothing(
    table: AcknowledgementTable,
) -> None:
    (mine, my_secret), (yours, your_secret) = table.open(), table.open()
    acknowledger = Acknowledger(0)
    acknowledger.acknowledge(table.table_id, yours, your_secret, 5)
    before = _file(table).read_bytes()
    for secret in (my_secret, your_secret ^ 1 << 40, your_secret & 0x7FFFFFFF, 0, -1, 2**63 - 1):
        for number in (0, 6, GONE):
            acknowledger.acknowledge(table.table_id, yours, secret, number)
    for number in (-1, GONE + 1, 2**62):
        acknowledger.acknowledge(table.table_id, yours, your_secret, number)
    assert _file(table).read_bytes() == before
    assert read(table, yours, your_secret) == 5
    assert read(table, mine, my_secret) == 0


def test_acknowledgements_a_free_slot_has_no_secret(table: AcknowledgementTable) -> None:
    column, _ = table.open()
    table.release(column)
    for secret in (0, 1, -1):
        Acknowledger(0).acknowledge(table.table_id, column, secret, 1)
    assert np.frombuffer(_file(table).read_bytes(), np.int64).any() == 0


def test_acknowledgements_secrets_are_long_and_all_different() -> None:
    table = AcknowledgementTable(num_columns=500)
    secrets = [table.open()[1] for _ in range(500)]
    table.close()
    assert len(set(secrets)) == 500
    assert all(0 < secret < 2**62 for secret in secrets)
    assert sum(secret > 2**56 for secret in secrets) > 450, "62 bits, not fewer"


def test_acknowledgements_a_table_cannot_be_reached_as_posix_shared_memory(table: AcknowledgementTable) -> None:
    """That is how Triton's clients register memory by name; its own call does what it does."""
    library = ctypes.CDLL(None, use_errno=True)
    for name in (f"/{table_folder(table.table_id).name}", f"/{table_folder(table.table_id).name}/acknowledgements"):
        assert library.shm_open(name.encode(), os.O_RDWR, 0o600) == -1
    assert library.shm_open(f"/../shm/{table_folder(table.table_id).name}/acknowledgements".encode(), os.O_RDWR, 0) < 0


def _orphan(number: int, *files: str) -> Path:
    folder = table_folder(number)
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(b"left behind")
    return folder


def test_acknowledgements_tables_left_behind_are_removed_and_those_in_use_are_not(table: AcknowledgementTable) -> None:
    orphans = [_orphan(0xAA, "acknowledgements"), _orphan(0xAB)]
    for suffix in ("", ".new"):  # of earlier versions
        orphans.append(Path(f"/dev/shm/trident-00000000000000ac{suffix}"))  # noqa: S108
        orphans[-1].write_bytes(b"left behind")
    other = AcknowledgementTable(num_columns=1)
    assert not any(path.exists() for path in orphans)
    assert _file(table).exists()
    other.close()


def test_acknowledgements_a_start_that_is_killed_leaves_nothing_that_the_next_one_does_not_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its system calls in turn, and when it is done."""
    script = """
import os, sys
from trident_ensemble import acknowledgements as a
calls = 0
def killing(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[1]):
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    return call
a.os.posix_fallocate = killing(os.posix_fallocate)
a.fcntl.flock = killing(a.fcntl.flock)
a.mmap.mmap = killing(a.mmap.mmap)
a._FOLDER = a.Path(sys.argv[2])
a.AcknowledgementTable(3)
os.kill(os.getpid(), 9)
"""
    monkeypatch.setattr(acknowledgements, "_FOLDER", tmp_path)
    left = []
    for number in range(1, 5):
        ended = subprocess.run(
            [sys.executable, "-c", script, str(number), str(tmp_path)], check=False, capture_output=True, timeout=60
        )
        assert ended.returncode == -9, ended.stderr.decode()
        left.append(sorted(path.name for path in tmp_path.glob("*/*")))
        assert list(tmp_path.iterdir()), "a killed process removes nothing itself"
        AcknowledgementTable(num_columns=1).close()
        assert not list(tmp_path.iterdir())
    assert left == [[], ["acknowledgements"], ["acknowledgements"], ["acknowledgements"]]


def test_acknowledgements_the_whole_file_has_its_memory_from_the_beginning() -> None:
    table = AcknowledgementTable(num_columns=4000)
    status = _file(table).stat()
    table.close()
    assert status.st_size == 4000 * (1 + NUM_INSTANCES) * 8
    assert status.st_blocks * 512 >= status.st_size


def test_acknowledgements_full_shared_memory_is_said_at_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(acknowledgements, "_FOLDER", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PlanError, match=r" has no room for the 136 bytes .* \(No space left on device\)"):
        AcknowledgementTable(num_columns=1)
    assert not list(tmp_path.iterdir())


def test_acknowledgements_tables_of_cores_that_are_gone_are_let_go() -> None:
    """A core that is loaded again has a new table."""
    acknowledger = Acknowledger(0)
    kept = AcknowledgementTable(num_columns=1)
    column, secret = kept.open()
    acknowledger.acknowledge(kept.table_id, column, secret, 1)
    num_mapped = _num_removed_tables_mapped()
    for _ in range(20):
        table = AcknowledgementTable(num_columns=1)
        acknowledger.acknowledge(table.table_id, *table.open(), 1)
        table.close()
        del table
    assert _num_removed_tables_mapped() - num_mapped <= 1, "of the last one"
    acknowledger.acknowledge(kept.table_id, column, secret, 2)
    assert read(kept, column, secret) == 2
    kept.close()


def _num_removed_tables_mapped() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("/acknowledgements (deleted)")


def test_acknowledgements_gone_outweighs_every_number(table: AcknowledgementTable) -> None:
    column, secret = table.open()
    Acknowledger(0).acknowledge(table.table_id, column, secret, GONE)
    Acknowledger(1).acknowledge(table.table_id, column, secret, 2)
    assert read(table, column, secret) == GONE
    table.release(column)
    _, following = table.open()
    assert read(table, column, following) == 0


def test_acknowledgements_rows_are_apart(table: AcknowledgementTable) -> None:
    streams = [table.open() for _ in range(4)]
    assert len({column for column, _ in streams}) == 4
    Acknowledger(NUM_INSTANCES + 1).acknowledge(table.table_id, streams[2][0], streams[2][1], 2)
    assert [read(table, *stream) for stream in streams] == [0, 0, 2, 0]


@pytest.mark.parametrize("column", [-1, 4, 1 << 40])
def test_acknowledgements_a_row_outside_the_table_is_ignored(table: AcknowledgementTable, column: int) -> None:
    stream = table.open()
    Acknowledger(0).acknowledge(table.table_id, column, 1, 1)
    assert read(table, *stream) == 0


@pytest.mark.parametrize("table_id", [0, -5, 12345, (1 << 63) - 1])
def test_acknowledgements_a_table_that_is_not_there_is_ignored(table_id: int) -> None:
    Acknowledger(0).acknowledge(table_id, 0, 1, 1)


def test_acknowledgements_the_file_is_private_and_goes_with_the_core(table: AcknowledgementTable) -> None:
    mode = _file(table).stat()
    assert stat.S_IMODE(mode.st_mode) == 0o600
    assert stat.S_IMODE(_file(table).parent.stat().st_mode) == 0o700
    assert mode.st_uid == os.getuid()
    column, secret = table.open()
    acknowledger = Acknowledger(0)
    acknowledger.acknowledge(table.table_id, column, secret, 1)
    table.close()
    assert not _file(table).parent.exists()
    acknowledger.acknowledge(table.table_id, column, secret, 2)
    table.close()
