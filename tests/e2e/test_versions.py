"""One engine takes the place of another in a running server, under load, and nobody loses a request.

The tests share one server, in the order in which they stand here: forward, back, a broken engine, and a new build.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.clients import ask_grpc, events
from tests.e2e.server import Server, get, post, serve, until
from tests.fakes.deployment import command
from tests.ports import free_ports

LIMIT_S = 120
PROMPT = "the quick brown fox"
MAX_TOKENS = 16
#: So many that a stream that begins while an engine loads ends when it serves.
MANY_TOKENS = 3500
#: Between two requests of a client, so that a few cores have time for an engine that loads.
PAUSE_S = 0.05
LIMITS = ("--max-num-seqs", "32", "--max-seq-len", "4096", "--kv-cache", "65536t")
ONCE: dict[str, Any] = {"text_input": PROMPT, "max_tokens": MAX_TOKENS, "min_tokens": MAX_TOKENS, "temperature": 0.0}
LONG = {**ONCE, "max_tokens": MANY_TOKENS, "min_tokens": MANY_TOKENS, "stream": True}


@dataclass(frozen=True)
class Switching:
    """The server that follows its repository, and its gateway."""

    repository: Path
    server: Server
    openai_port: int
    private_port: int
    checkpoints: tuple[Path, Path]

    def said(self, text: str, after: int = 0) -> bool:
        return text in self.output[after:]

    @property
    def output(self) -> str:
        return self.server.log.read_text(errors="replace")

    @property
    def core(self) -> Path:
        return self.repository / "core"

    def use(self, version: int) -> None:
        """`trident versions --use`."""
        subprocess.run(command("versions", "--repository", self.repository, "--use", version), check=True, timeout=60)

    def stubs(self) -> list[str]:
        """The versions of the core that have a process."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            if "trident-serve-" in " ".join(words[1:2]) and words[1].endswith("model.py") and self._is_mine(folder):
                match = re.search(r"/core/(\d+)/model\.py$", words[1])
                found += [match[1]] if match else []
        return sorted(found)

    def _is_mine(self, folder: Path) -> bool:
        """Whether it is a grandchild of this server's `trident serve`."""
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            return False
        return int(grandparent) == self.server.process.pid or int(parent) == self.server.process.pid

    def once(self) -> str:
        status, body = post(self.server, "/v2/models/ensemble/generate", ONCE)
        assert status == 200, body
        text: str = json.loads(body)["text_output"]
        return text

    def unary(self) -> str:
        status, body = post(self.server, "/v2/models/ensemble_unary/generate", ONCE)
        assert status == 200, body
        text: str = json.loads(body)["text_output"]
        return text

    def grpc(self) -> str:
        return ask_grpc(self.server.grpc, **ONCE).text

    def openai(self) -> str:
        body = {"model": "served", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
        answer: str = self.ask_gateway("/v1/completions", body)["choices"][0]["text"]
        return answer

    def ask_gateway(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.openai_port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    def created(self) -> int:
        """What the gateway's clients see of the model's age; a status other than 200 fails."""
        card = self.ask_gateway("/v1/models/served")
        ready = urllib.request.urlopen(f"http://127.0.0.1:{self.private_port}/ready", timeout=LIMIT_S)
        assert ready.status == 200
        age: int = card["created"]
        return age

    def stream(self) -> str:
        """A long stream, to its end."""
        status, body = post(self.server, "/v2/models/ensemble/generate_stream", LONG)
        assert status == 200, body
        answers = events(body)
        assert answers[-1]["finish_reason"] == "length"
        return "".join(answer["text_output"] for answer in answers)


@dataclass
class Load:
    """What several clients got who ask again and again: the begin, the end and the text of each answer."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def after(self, moment: float) -> set[str]:
        return {text for begin, _, text in self.answers if begin > moment}

    def before(self, moment: float) -> set[str]:
        return {text for _, end, text in self.answers if end < moment}

    def in_turn(self, old: str, new: str) -> bool:
        """Whether no request that began after the first answer of the new engine was answered by the old one."""
        first = min(end for _, end, text in self.answers if text == new)
        return old not in self.after(first)


@contextmanager
def under_load(*clients: Callable[[], object]) -> Iterator[Load]:
    """Have each client ask again and again; whatever it raises is a failure."""
    load, stopped = Load(), threading.Event()

    def ask(client: Callable[[], object]) -> None:
        while not stopped.is_set():
            begin = time.monotonic()
            try:
                text = client()
            except Exception as error:
                load.failures.append(f"{client}: {error!r}")
            else:
                load.answers.append((begin, time.monotonic(), str(text)))
            stopped.wait(PAUSE_S)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stopped.set()
        for thread in threads:
            thread.join(LIMIT_S)


@pytest.fixture(scope="module")
def switching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switching]:
    folder = tmp_path_factory.mktemp("versions")
    first, second = (
        make_checkpoint(folder / f"seed{seed}", "llama", seed=seed, max_position_embeddings=8192) for seed in (0, 1)
    )
    repository = build(first, folder / "repository", "--served-name", "served", *LIMITS)
    build(second, repository, "--new-version", "--max-num-seqs", "16", "--kv-cache", "65536t")
    subprocess.run(command("versions", "--repository", repository, "--use", 1), check=True, timeout=60)
    port, private_port = free_ports(2)
    options = ("--openai-port", str(port), "--openai-private-port", str(private_port), "--follow")
    with serve(repository, folder / "log", *options) as server:
        running = Switching(repository, server, port, private_port, (first, second))
        until(lambda: running.said("OpenAI's API: "), LIMIT_S, "a gateway")
        yield running


@pytest.fixture(scope="module")
def texts(switching: Switching) -> dict[int, str]:
    """What each version says; filled in as they are seen."""
    return {1: switching.once()}


def without_ages(texts: set[str]) -> set[str]:
    """Return what the clients got who ask for text."""
    return {text for text in texts if not text.isdigit()}


def clients_of(switching: Switching) -> tuple[Callable[[], object], ...]:
    return switching.once, switching.unary, switching.grpc, switching.openai, switching.created


@dataclass(frozen=True)
class Switch:
    """When a version began to load and when it was said to serve, and the streams that began in between."""

    began: float
    served: float
    streams: list[Future[str]]


def switch(switching: Switching, version: int, change: Callable[[], object]) -> Switch:
    """Make a change, begin streams while the version loads, and see the old version to its end."""
    seen = len(switching.output)
    change()
    until(lambda: switching.said(f"Loading version {version} of core", seen), LIMIT_S, "a load")
    began = time.monotonic()
    pool = ThreadPoolExecutor(3)
    streams = [pool.submit(switching.stream) for _ in range(3)]
    until(lambda: switching.said(f"Version {version} of core serves new requests", seen), LIMIT_S, "a switch")
    served = time.monotonic()
    assert not any(stream.done() for stream in streams), "the streams were to run over the switch"
    until(lambda: switching.said("has ended.", seen), LIMIT_S, "the old version's end")
    pool.shutdown()
    return Switch(began, served, streams)


def test_versions_streams_end_as_they_began_and_new_requests_are_the_new_engines(
    switching: Switching, texts: dict[int, str]
) -> None:
    whole = switching.stream()
    with under_load(*clients_of(switching)) as load:
        change = switch(switching, 2, partial(switching.use, 2))
        texts[2] = switching.once()
        time.sleep(1)
    assert load.failures == []
    assert texts[2] != texts[1]
    assert [stream.result() for stream in change.streams] == [whole] * 3
    assert without_ages(load.before(change.began)) == {texts[1]}
    assert without_ages(load.after(change.served)) == {texts[2]}
    assert load.in_turn(texts[1], texts[2])
    assert switching.stubs() == ["2"]
    assert get(switching.server, "/v2/health/ready") == 200


def test_versions_the_way_back_is_the_same(switching: Switching, texts: dict[int, str]) -> None:
    whole = switching.stream()
    with under_load(*clients_of(switching)) as load:
        change = switch(switching, 1, partial(switching.use, 1))
        time.sleep(1)
    assert load.failures == []
    assert [stream.result() for stream in change.streams] == [whole] * 3
    assert without_ages(load.after(change.served)) == {texts[1]}
    assert load.in_turn(texts[2], texts[1])
    assert switching.stubs() == ["1"]


def test_versions_a_broken_engine_changes_nothing(switching: Switching, texts: dict[int, str]) -> None:
    seen = len(switching.output)
    broken = switching.core / "broken"
    shutil.copytree(switching.core / "aside-2", broken)
    with (broken / "network.bin").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    with under_load(*clients_of(switching)) as load:
        broken.rename(switching.core / "7")
        until(lambda: switching.said("version 7 of core is not served", seen), LIMIT_S, "a refusal")
    assert switching.said("digests.network.bin: the file has changed", seen)
    assert load.failures == []
    assert without_ages(load.before(time.monotonic())) == {texts[1]}
    assert get(switching.server, "/v2/health/ready") == 200
    assert switching.stubs() == ["1"]
    shutil.rmtree(switching.core / "7")


def test_versions_a_build_arrives_with_its_card(switching: Switching, texts: dict[int, str]) -> None:
    before = switching.created()
    with under_load(*clients_of(switching)) as load:
        make = partial(build, switching.checkpoints[1], switching.repository, "--new-version", "--kv-cache", "65536t")
        change = switch(switching, 3, make)
        until(lambda: switching.created() > before, LIMIT_S, "the new card")
    assert load.failures == []
    assert len({stream.result() for stream in change.streams}) == 1
    assert without_ages(load.after(change.served)) == {texts[2]}
    assert sorted(path.name for path in switching.core.iterdir()) == ["1", "3", "aside-2", "config.pbtxt"]
    assert switching.server.num_active == 0


def test_versions_what_cannot_be_switched_is_refused_before_it_is_built(switching: Switching) -> None:
    other = [*command("build", switching.checkpoints[0], "--repository", switching.repository, "--new-version")]
    for options, said in (
        (["--max-seq-len", "512"], "--max-seq-len: it is 4096 for all versions"),
        (["--served-name", "else"], "--served-name and --alias: the model's are served"),
        (["--max-queue-size", "3"], "--max-queue-size: it changes the settings of core"),
        (["--name", "nothing"], "no config.pbtxt for nothing_preprocessing"),
    ):
        outcome = subprocess.run([*other, *options], capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert outcome.returncode == 1
        assert said in outcome.stderr, outcome.stderr
