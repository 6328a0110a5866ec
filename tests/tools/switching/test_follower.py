"""What a follower does about whatever may become of a repository and a server; against a model of both."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.fakes.manifests import write_small_manifest
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest, read_manifest
from trident_tools.switching.compatibility import check_replaces
from trident_tools.switching.follower import LOOK_S, LOST_S, VersionFollower
from trident_tools.versions import use_version

NAMES = ModelNames()


def length_of(engine: Path) -> int:
    """Return the longest sequence of an engine that is there."""
    return read_manifest(engine).limits.max_seq_len


@dataclass
class FakeLoad:
    """A load whose end the test decides."""

    version: int
    length: int
    outcome: str | None = None
    is_stopped: bool = False

    def failure(self) -> str | None:
        return self.outcome

    def stop(self) -> None:
        self.is_stopped = True


@dataclass
class FakeServer:
    """A tritonserver of one core: what it sees, serves, loads and has not ended yet."""

    sees: int = 0
    folder: Path = Path()
    serves: int = 0
    length: int = 128
    ending: set[int] = field(default_factory=set)
    loads: list[FakeLoad] = field(default_factory=list)
    has_crashed_load: bool = False
    answers: bool = True

    def show(self, names: ModelNames, version: int, engine: Path) -> None:
        assert names == NAMES
        self.sees, self.folder = version, engine

    def load(self, names: ModelNames, engine: Path) -> FakeLoad:
        assert int(engine.name) == self.sees, "it is told to load what it does not see"
        assert not self.ending, "three engines side by side"
        assert all(load.outcome is not None or load.is_stopped for load in self.loads), "two loads at a time"
        self.loads.append(FakeLoad(self.sees, length_of(engine)))
        return self.loads[-1]

    def is_unloading(self, names: ModelNames, version: int) -> bool:
        if not self.answers:
            raise OSError("busy")
        return version in self.ending

    def is_loading(self, names: ModelNames, version: int) -> bool:
        if not self.answers:
            raise OSError("busy")
        return self.loads[-1].outcome is None

    def is_ready(self, names: ModelNames, version: int) -> bool:
        if not self.answers:
            raise OSError("busy")
        return version == self.serves

    def has_process(self, names: ModelNames, version: int) -> bool:
        return not self.has_crashed_load


class Bench:
    """A repository, a server and a follower on a clock of their own."""

    def __init__(self, folder: Path) -> None:
        self.core = folder / NAMES.core
        self.now = 0.0
        self.said: list[str] = []
        self.complaints: list[str] = []
        self.server = FakeServer()
        self.put(1)
        self.follower = VersionFollower(
            folder,
            {NAMES: read_manifest(self.core / "1")},
            self.server,
            check=lambda _names, old, new: check_replaces(old, new),
            say=self.said.append,
            complain=self.complaints.append,
            clock=lambda: self.now,
        )
        self.server.serves = 1

    def put(self, version: int, max_seq_len: int = 128) -> None:
        """Put a complete version into the repository by one rename."""
        staged = self.core.parent / "staged"
        staged.mkdir(parents=True)
        write_small_manifest(staged, max_seq_len)
        self.core.mkdir(exist_ok=True)
        staged.rename(self.core / str(version))

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.now += LOOK_S
            self.follower.look()

    @property
    def loading(self) -> FakeLoad:
        assert self.server.loads[-1].outcome is None
        return self.server.loads[-1]

    def end_load(self, failure: str = "", *, of_core: bool = True) -> None:
        """End the load under way; with a failure of the core, or of the ensemble after it."""
        load = self.loading
        load.outcome = failure
        if not (failure and of_core):
            self.server.ending.add(self.server.serves)
            self.server.serves, self.server.length = load.version, load.length
        self.look(1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_follower_a_new_version_is_loaded_once_it_has_settled_and_the_old_one_seen_to_its_end(bench: Bench) -> None:
    bench.look()
    assert (bench.server.loads, bench.server.sees) == ([], 1)
    bench.put(2)
    bench.look(1)
    assert bench.server.loads == []
    (bench.core / "2" / "more").touch()
    bench.look(1)
    assert bench.server.loads == []
    bench.look(1)
    assert (bench.loading.version, bench.server.sees) == (2, 2)
    bench.look(3)
    assert bench.said == ["Loading version 2 of core; version 1 serves meanwhile."]
    bench.end_load()
    assert "Version 2 of core serves new requests" in bench.said[-1]
    bench.put(3)
    bench.look(5)
    assert len(bench.server.loads) == 1, "the first version still has requests"
    bench.server.ending.clear()
    bench.look(2)
    assert bench.said[2] == "Version 1 of core has ended."
    assert bench.loading.version == 3
    assert bench.complaints == []


def test_follower_a_folder_without_a_manifest_is_not_finished(bench: Bench) -> None:
    (bench.core / "2").mkdir()
    (bench.core / "2" / "network.bin").write_bytes(b"half")
    bench.look(5)
    assert (bench.server.loads, bench.complaints) == ([], [])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda bench: bench.put(2, max_seq_len=256), "max_seq_len: it is 256"),
        (lambda bench: (bench.put(2), (bench.core / "2" / layout.MANIFEST_FILE).write_text("{")), "cannot be read"),
    ],
)
def test_follower_what_cannot_take_the_place_is_refused_once_and_tried_again_when_it_changes(
    bench: Bench, spoil: Callable[[Bench], object], said: str
) -> None:
    spoil(bench)
    bench.look(6)
    (complaint,) = bench.complaints
    assert said in complaint
    assert "Version 1 goes on" in complaint
    assert (bench.server.loads, bench.server.sees) == ([], 1)
    write_small_manifest(bench.core / "2", 128)
    (bench.core / "2" / "mended").touch()
    bench.look(2)
    assert bench.loading.version == 2


def test_follower_a_load_that_fails_changes_nothing(bench: Bench) -> None:
    bench.put(2)
    bench.look()
    bench.end_load("digests.network.bin: the file has changed")
    assert "version 2 of core is not served: digests.network.bin" in bench.complaints[0]
    bench.look(5)
    assert (bench.server.sees, len(bench.server.loads), len(bench.complaints)) == (1, 1, 1)
    shutil.rmtree(bench.core / "2")
    bench.look()
    bench.put(2)
    bench.look()
    assert len(bench.server.loads) == 2


def test_follower_a_core_that_is_loaded_is_served_though_its_ensemble_is_not(bench: Bench) -> None:
    bench.put(2)
    bench.look()
    bench.server.answers = False
    bench.end_load("the ensemble cannot be loaded", of_core=False)
    bench.look(3)
    assert bench.complaints == [], "nobody knows yet which version is served"
    bench.server.answers = True
    bench.look(1)
    (complaint,) = bench.complaints
    assert "version 2 of core is served, and ensemble has not been loaded again" in complaint
    assert "the ensemble cannot be loaded" in complaint
    assert "Version 2 of core serves new requests" in bench.said[-1]
    assert bench.server.sees == 2
    bench.put(3)
    bench.look(3)
    assert len(bench.server.loads) == 1, "version 1 still has requests"
    bench.server.ending.clear()
    bench.look(3)
    assert bench.loading.version == 3
    bench.follower.server_ended()
    assert bench.server.sees == 2, "the next server begins with what was served"


def test_follower_the_next_server_gets_a_version_that_is_there(bench: Bench) -> None:
    bench.put(2)
    bench.look()
    bench.end_load()
    (bench.core / "2").rename(layout.aside_folder(bench.core, 2))  # while version 1 still has requests
    bench.look(3)
    bench.follower.server_ended()
    assert (bench.server.sees, bench.server.folder) == (2, layout.aside_folder(bench.core, 2))
    bench.server.ending.clear()
    bench.look(3)
    assert bench.loading.version == 1, "and is followed by the one that was asked for"
    bench.end_load()
    bench.server.ending.clear()
    shutil.rmtree(bench.core / "1")
    (bench.core / "3").mkdir()
    (bench.core / "3" / layout.MANIFEST_FILE).write_text("{")
    layout.aside_folder(bench.core, 2).rename(bench.core / "2")
    bench.look(3)
    bench.follower.server_ended()
    assert (bench.server.sees, bench.server.folder) == (2, bench.core / "2"), "the newest that can be read"
    bench.look(3)
    assert len(bench.complaints) == 1, "what was refused is not tried again"


def test_follower_the_way_back_is_a_lower_number(bench: Bench) -> None:
    bench.put(2)
    bench.look()
    bench.end_load()
    bench.server.ending.clear()
    (bench.core / "2").rename(layout.aside_folder(bench.core, 2))
    bench.look(2)
    assert (bench.loading.version, bench.server.sees) == (1, 1)
    bench.end_load("no room")
    assert (bench.server.sees, bench.server.folder) == (2, layout.aside_folder(bench.core, 2))


def test_follower_a_load_whose_process_is_gone_is_given_up(bench: Bench) -> None:
    bench.put(2)
    bench.look()
    bench.server.has_crashed_load = True
    bench.server.answers = False
    bench.look(int(LOST_S / LOOK_S) + 2)
    assert bench.complaints == [], "a server that does not answer has not said that it loads"
    bench.server.answers = True
    bench.look(int(LOST_S / LOOK_S) + 2)
    assert bench.server.loads[-1].is_stopped
    assert "its process has ended" in bench.complaints[0]
    bench.put(3)
    bench.look(4)
    assert len(bench.server.loads) == 1, "Triton would wait for the other for ever"
    bench.follower.server_ended()
    bench.server.has_crashed_load = False
    bench.look(4)
    assert bench.loading.version == 3


def test_follower_the_next_server_begins_with_what_was_served(bench: Bench) -> None:
    bench.put(2)
    bench.look()
    bench.follower.server_ended()
    assert bench.server.loads[-1].is_stopped
    assert bench.server.sees == 1
    bench.look(4)
    assert len(bench.server.loads) == 1, "it may have been what ended the server"


class Histories(RuleBasedStateMachine):
    """Any order of new versions, ways back, loads that end well or not, and ends of servers."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.bench = Bench(Path(self.folder.name))

    @rule(version=st.integers(2, 4), fits=st.booleans())
    def put(self, version: int, fits: bool) -> None:
        if version not in self.known():
            self.bench.put(version, 128 if fits else 64)

    def known(self) -> set[int]:
        return {*layout.version_numbers(self.bench.core), *layout.versions_aside(self.bench.core)}

    @rule(version=st.integers(1, 4))
    def remove(self, version: int) -> None:
        if {*layout.version_numbers(self.bench.core)} - {version}:
            for folder in (self.bench.core / str(version), layout.aside_folder(self.bench.core, version)):
                shutil.rmtree(folder, ignore_errors=True)

    @rule(version=st.integers(1, 4))
    def use(self, version: int) -> None:
        if version in self.known():
            with contextlib.suppress(ServerError):
                use_version(self.bench.core, version)

    @rule(times=st.integers(1, 4))
    def look(self, times: int) -> None:
        self.bench.look(times)

    @rule(failure=st.sampled_from(["", "", "no room"]), of_core=st.booleans())
    def end_load(self, failure: str, of_core: bool) -> None:
        loads = self.bench.server.loads
        if loads and loads[-1].outcome is None and not loads[-1].is_stopped:
            self.bench.end_load(failure, of_core=of_core)

    @rule()
    def end_old_one(self) -> None:
        self.bench.server.ending.clear()

    @rule()
    def end_server(self) -> None:
        self.bench.follower.server_ended()
        self.bench.server.ending.clear()
        if self.bench.server.loads and self.bench.server.loads[-1].outcome is None:
            self.bench.server.loads[-1].outcome = "gone"
        server = self.bench.server
        server.serves, server.length = server.sees, length_of(server.folder)

    @invariant()
    def sees_what_it_serves_or_loads(self) -> None:
        if not hasattr(self, "bench"):
            return
        server = self.bench.server
        under_way = [load.version for load in server.loads if load.outcome is None and not load.is_stopped]
        assert server.sees in {*under_way, server.serves}
        assert server.serves not in server.ending

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        # Whatever has happened, what fits and is the highest is served in the end, once nothing fails any more.
        for version in (2, 3, 4):
            folder = self.bench.core / str(version)
            if folder.exists() and version != self.bench.server.serves:
                shutil.rmtree(folder)
        self.bench.put(9, self.bench.server.length)
        for _ in range(4):
            self.bench.look(3)
            loads = self.bench.server.loads
            if loads and loads[-1].outcome is None and not loads[-1].is_stopped:
                self.bench.end_load()
            self.bench.server.ending.clear()
        assert self.bench.server.serves == 9
        self.folder.cleanup()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(st.integers(1, 4096), st.integers(1, 4096))
@settings(max_examples=20, deadline=None)
def test_check_replaces_equal_lengths_alone(old: int, new: int) -> None:
    with TemporaryDirectory() as folder:
        manifests = []
        for number, length in enumerate((old, new)):
            path = Path(folder) / str(number)
            path.mkdir()
            write_small_manifest(path, length)
            manifests.append(read_manifest(path))
    if old == new:
        check_replaces(*manifests)
        return
    with pytest.raises(ServerError, match="max_seq_len"):
        check_replaces(*manifests)


def test_check_replaces_names_the_file_of_text_that_differs(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, 64)
    manifest = read_manifest(tmp_path)

    def having(**digests: str) -> Manifest:
        return Manifest(**{**vars(manifest), "digests": digests})

    one = having(**{"tokenizer/tokenizer.json": "a", "network.bin": "b"})
    check_replaces(one, having(**{"tokenizer/tokenizer.json": "a", "network.bin": "c"}))
    with pytest.raises(ServerError, match=r"^tokenizer/tokenizer.json: it differs"):
        check_replaces(one, having(**{"tokenizer/tokenizer.json": "z", "network.bin": "b"}))
    with pytest.raises(ServerError, match=r"^chat_templates.json: it differs"):
        check_replaces(one, having(**{"tokenizer/tokenizer.json": "a", "chat_templates.json": "x"}))
