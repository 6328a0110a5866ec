"""The core's settings as options of commands, and laid over a repository."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings
from trident_ensemble.wiring import RepositorySettings, read_core_settings, render_repository
from trident_tools.core_options import add_core_options, asks_for_settings, core_settings
from trident_tools.main import main
from trident_tools.server.overlay import overlay, served_settings

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
BUILT = CoreSettings(max_queue_size=7, target_itl_ms=30)


def _parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_core_options(parser)
    return parser.parse_args(words)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for path, text in render_repository(RepositorySettings(1, 1, BUILT), ModelCard("demo", 0, 64)).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "core" / "1").mkdir()
    (folder / "core" / "1" / "engine.json").write_text("{}")
    return folder


def test_core_options_every_setting_has_an_option_with_its_doc_and_default() -> None:
    parser = argparse.ArgumentParser()
    add_core_options(parser)
    text = " ".join(parser.format_help().split())
    for known in fields(CoreSettings):
        assert "--" + known.name.replace("_", "-") in text
        assert known.metadata["doc"].split(";")[0].split(":")[0] in text


def test_core_options_what_is_not_asked_for_is_left_as_it_was() -> None:
    assert not asks_for_settings(_parse())
    assert core_settings(_parse(), BUILT) == BUILT
    args = _parse(
        "--target-itl-ms", "50", "--batch-scheduler-policy", "max_utilization", "--tenant-weights", "a=2,=0.5"
    )
    assert asks_for_settings(args)
    assert core_settings(args, BUILT) == CoreSettings(
        max_queue_size=7,
        target_itl_ms=50,
        batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION,
        tenant_weights=(("a", 2.0), ("", 0.5)),
    )


def test_core_options_a_bad_value_is_a_wrong_usage_that_says_what_it_must_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        _parse("--max-queue-size", "0")
    assert "--max-queue-size: must be a whole number of at least 1, not '0'" in capsys.readouterr().err


def test_core_options_an_overlay_changes_one_file_and_touches_nothing(repository: Path, tmp_path: Path) -> None:
    before = {path: path.read_text() for path in repository.rglob("*") if path.is_file()}
    assert served_settings(repository, ModelNames()) == BUILT
    folder = tmp_path / "laid over"
    folder.mkdir()
    wanted = CoreSettings(token_budget=64)
    assert overlay(repository, folder, {ModelNames(): wanted}) == folder
    assert served_settings(folder, ModelNames()) == wanted
    assert {path: path.read_text() for path in repository.rglob("*") if path.is_file()} == before
    changed = folder / "core" / "config.pbtxt"
    for path, text in before.items():
        laid = folder / path.relative_to(repository)
        assert laid == changed or laid.read_text() == text
    ours, theirs = changed.read_text(), (repository / "core" / "config.pbtxt").read_text()
    assert read_core_settings(ours) == wanted
    assert ours.replace('"64"', '"0"').replace('"1024"', '"7"') == theirs.replace('"30"', '"0"')


def test_core_options_a_budget_that_the_engine_cannot_keep_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--engine", "openvino", "--max-num-seqs", "8", "--max-num-tokens", "64", "--token-budget", "65", "--quiet"]
    assert main(["build", str(DEMO), "--repository", str(tmp_path / "models"), *words]) == 1
    assert "parameters.token_budget: must be from 8 (max_num_seqs) to 64 (max_num_tokens)" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
