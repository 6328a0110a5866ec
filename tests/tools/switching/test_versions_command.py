"""`trident versions` and `trident build --new-version`, as far as they need no engine."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest

from tests.fakes.manifests import write_small_manifest
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, BuildError, ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools.main import main
from trident_tools.switching.existing_model import check_asked, check_only_version, new_card, open_existing
from trident_tools.versions import use_version

CARD = ModelCard("served", 5, 64, digest="d", aliases=("alias",))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three versions, of which the third cannot take the place of the others."""
    settings = RepositorySettings(2, 3, CoreSettings(max_queue_size=7))
    for name, text in render_repository(settings, CARD).items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for version, max_seq_len in ((1, 64), (2, 64), (3, 32)):
        folder = tmp_path / "repository" / "core" / str(version)
        folder.mkdir()
        write_small_manifest(folder, max_seq_len)
    return tmp_path / "repository"


def names_of(repository: Path) -> list[str]:
    return sorted(path.name for path in (repository / "core").iterdir() if path.is_dir())


def test_versions_lists_them_and_goes_back_and_forth(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "core" / "3").rename(repository / "core" / "aside-3")
    options = ["versions", "--repository", str(repository)]
    assert main([*options, "--use", "1"]) == 0
    assert names_of(repository) == ["1", "aside-2", "aside-3"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "served"], ["2", "aside"], ["3", "aside"]]
    assert main([*options, "--use", "2"]) == 0
    assert names_of(repository) == ["1", "2", "aside-3"]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["llama,", "served", "aside"]
    assert main([*options, "--use", "9"]) == 1
    assert "--use 9: core has 1, 2, 3" in capsys.readouterr().err
    assert main([*options, "--model", "other"]) == 1
    assert "no config.pbtxt for other_preprocessing" in capsys.readouterr().err


def test_versions_one_that_cannot_take_the_place_is_left_where_it_is(repository: Path) -> None:
    core = repository / "core"
    with pytest.raises(ServerError, match="max_seq_len"):
        use_version(core, 1)
    (core / "2" / layout.MANIFEST_FILE).write_text("{")
    with pytest.raises(ArtifactError):
        use_version(core, 2)
    assert names_of(repository) == ["1", "2", "3"]


def test_versions_a_broken_one_is_put_aside(repository: Path) -> None:
    (repository / "core" / "3" / layout.MANIFEST_FILE).write_text("{")
    use_version(repository / "core", 1)
    assert names_of(repository) == ["1", "aside-2", "aside-3"]


def test_versions_on_a_volume_that_cannot_be_written_to_are_left_with_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "core" / "3").rename(repository / "core" / "aside-3")

    def refuse(_path: Path, _target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    assert main(["versions", "--repository", str(repository), "--use", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("core cannot be renamed: Read-only file system")


def test_versions_at_each_moment_some_version_is_there(repository: Path) -> None:
    core = repository / "core"
    (core / "3").rename(core / "aside-3")
    seen, stopped = set(), threading.Event()

    def watch() -> None:
        while not stopped.is_set():
            seen.add(layout.newest_version(core).name)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(100):
            use_version(core, 1)
            use_version(core, 2)
    finally:
        stopped.set()
        thread.join(60)
    assert seen <= {"1", "2"}


def test_new_version_gets_a_number_that_was_never_used(repository: Path) -> None:
    assert open_existing(repository, ModelNames()).version == 4
    (repository / "core" / "3").rename(repository / "core" / "aside-3")
    existing = open_existing(repository, ModelNames())
    assert existing.version == 4
    assert existing.settings.core.max_queue_size == 7
    assert (existing.settings.preprocessing_instances, existing.settings.postprocessing_instances) == (2, 3)


def test_check_only_version_names_the_others_and_what_to_do(repository: Path, tmp_path: Path) -> None:
    core, names = repository / "core", ModelNames()
    with pytest.raises(BuildError, match=r"core has version 2, 3, .*--new-version.*remove"):
        check_only_version(repository, names)
    shutil.rmtree(core / "3")
    (core / "2").rename(layout.aside_folder(core, 2))
    with pytest.raises(BuildError, match=r"core has version 2, .*--new-version"):
        check_only_version(repository, names)
    shutil.rmtree(layout.aside_folder(core, 2))
    check_only_version(repository, names)
    check_only_version(tmp_path / "new", names)


@pytest.mark.parametrize("model", ["preprocessing", "core", "ensemble"])
def test_new_version_refuses_a_model_of_another_release(repository: Path, model: str) -> None:
    config = repository / model / "config.pbtxt"
    config.write_text(config.read_text() + 'input { name: "unknown" data_type: TYPE_INT32 dims: 1 }\n')
    with pytest.raises(BuildError, match=rf"--new-version: .*{model}/config.pbtxt .*trident rollout"):
        open_existing(repository, ModelNames())


def test_new_version_refuses_what_all_versions_share(repository: Path) -> None:
    existing = open_existing(repository, ModelNames())
    own = existing.settings.core
    check_asked(existing, asked=own, served=["alias"], instances=False)
    with pytest.raises(BuildError, match=r"^--max-queue-size: "):
        check_asked(existing, asked=CoreSettings(), served=[], instances=False)
    with pytest.raises(BuildError, match=r"^--served-name and --alias: the model's are alias, served"):
        check_asked(existing, asked=own, served=["other"], instances=False)
    with pytest.raises(BuildError, match=r"^--preprocessing-instances"):
        check_asked(existing, asked=own, served=[], instances=True)
    younger = ModelCard("served", 9, 64, digest="d", aliases=("alias",))
    assert new_card(existing, existing.manifest, younger) == younger
    with pytest.raises(BuildError, match="card"):
        new_card(existing, existing.manifest, ModelCard("served", 9, 64, digest="e", aliases=("alias",)))


def test_new_version_refuses_another_tokenizer_before_anything_is_compiled(repository: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "engine" / "tokenizer"
    tokenizer.mkdir(parents=True)
    existing = open_existing(repository, ModelNames())
    existing.check_tokenizer(tmp_path / "engine")
    (tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(ServerError, match=r"tokenizer/tokenizer.json: it differs"):
        existing.check_tokenizer(tmp_path / "engine")
