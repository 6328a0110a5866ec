"""Installing a build: whole, in place of an old one, undone on failure, other models untouched."""

from __future__ import annotations

from pathlib import Path

import pytest

from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.layout import ModelNames
from trident_tools.building import repository
from trident_tools.building.repository import engine_version, install, staging

ENGINE_VERSION = engine_version(ModelNames())

TEXTS = {"core/config.pbtxt": "core", "preprocessing/config.pbtxt": "pre", "preprocessing/1/model.py": "model"}


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def build(target: Path, engine: str, texts: dict[str, str] = TEXTS, new_version: Path | None = None) -> None:
    version = new_version or ENGINE_VERSION
    with staging(target) as staged:
        (staged / version).mkdir(parents=True)
        (staged / version / "engine.json").write_text(engine)
        install(staged, target, texts, version, may_replace=new_version is None)


@pytest.mark.parametrize("exists", [False, True])
def test_repository_a_new_repository(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "deep" / "repository"
    if exists:
        target.mkdir(parents=True)
    build(target, "first")
    assert tree(target) == {**TEXTS, "core/1/engine.json": "first"}
    assert [entry.name for entry in target.parent.iterdir()] == ["repository"]


@pytest.mark.parametrize("atomic", [True, False])
def test_repository_a_second_build_replaces_the_engine_and_leaves_others_alone(
    tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomic:  # as on a file system that cannot exchange
        monkeypatch.setattr(repository, "_RENAME_EXCHANGE", 1 << 30)
    target = tmp_path / "repository"
    build(target, "first")
    (target / "core" / "1" / "left over").write_text("old")
    for other in ("core/2/engine.json", "mine/config.pbtxt"):
        (target / other).parent.mkdir()
        (target / other).write_text("other")
    untouched = (target / "core/config.pbtxt").stat()
    build(target, "second", {**TEXTS, "preprocessing/config.pbtxt": "changed"})
    assert tree(target) == {
        **TEXTS,
        "preprocessing/config.pbtxt": "changed",
        "core/1/engine.json": "second",
        "core/2/engine.json": "other",
        "mine/config.pbtxt": "other",
    }
    assert (target / "core/config.pbtxt").stat() == untouched
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_repository_a_failure_while_installing_undoes_everything(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "repository"
    build(target, "first")
    before = tree(target)
    exchange = repository._exchange

    def failing(a: Path, b: Path) -> None:
        if b.name == ENGINE_VERSION.name and (a / "engine.json").read_text() == "second":
            raise error
        exchange(a, b)

    monkeypatch.setattr(repository, "_exchange", failing)
    with pytest.raises(type(error)):
        build(target, "second", {name: text + " changed" for name, text in TEXTS.items()} | {"new/config.pbtxt": ""})
    assert tree(target) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_repository_a_new_version_never_replaces_the_one_of_a_build_that_was_faster(tmp_path: Path) -> None:
    target, second = tmp_path / "repository", engine_version(ModelNames(), 2)
    build(target, "first")
    build(target, "faster", {**TEXTS, "core/config.pbtxt": "its"}, second)
    before = tree(target)
    with pytest.raises(BuildError, match=r"--new-version: another build has put core/2 into .*; build again"):
        build(target, "slower", {**TEXTS, "core/config.pbtxt": "other"}, second)
    assert tree(target) == before
    assert before["core/2/engine.json"] == "faster"
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_repository_a_failure_while_building_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staging(tmp_path / "repository") as staged:
            (staged / "half").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_repository_a_repository_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "repository").write_text("")
    with pytest.raises(BuildError, match="not a folder"):
        build(tmp_path / "repository", "first")
