"""The card of a build: names, time, digest, and the checked-in card of the demo model."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.fakes.manifests import write_small_manifest
from trident_compiler.model_folder import open_checkpoint
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.manifest import Manifest, read_manifest
from trident_ensemble.contract.model_card import Marker, ModelCard, ToolFormat
from trident_ensemble.wiring import read_card
from trident_preprocessing.chat.template_probe import write_template_profiles
from trident_tools.building.card import (
    SOURCE_DATE_EPOCH,
    ServedNames,
    build_time,
    check_names_are_free,
    default_served_name,
    make_card,
)
from trident_tools.building.output_markers import OutputMarkers

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "tools" / "demo" / "checkpoint"
NO_MARKERS = OutputMarkers()


def _engine(folder: Path, template: str | None = None) -> Manifest:
    """Write the text side of the demo model's engine, perhaps with another chat template, and an empty network."""
    folder.mkdir()
    open_checkpoint(DEMO).tokenizer_files.write(folder / layout.TOKENIZER_FOLDER)
    if template is not None:
        (folder / layout.TOKENIZER_FOLDER / "chat_template.jinja").write_text(template)
    write_template_profiles(folder)
    write_small_manifest(folder, 1024)
    manifest = read_manifest(folder)
    manifest.digests.update(digest_folder(folder))
    return manifest


def test_card_the_checked_in_one_is_what_make_serve_builds(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    [epoch] = re.findall(r"SOURCE_DATE_EPOCH=(\d+) ", makefile)
    [name] = re.findall(r"SOURCE_DATE_EPOCH=.*?--served-name (\S+)", makefile, re.DOTALL)
    manifest = _engine(tmp_path / "engine")
    made = make_card(
        ServedNames(name), build_time({SOURCE_DATE_EPOCH: epoch}), tmp_path / "engine", manifest, NO_MARKERS
    )
    assert read_card((ROOT / "model_repository" / "ensemble" / "config.pbtxt").read_text()) == made


def test_card_has_the_markers_of_the_output(tmp_path: Path) -> None:
    markers = OutputMarkers(True, ToolFormat.HERMES, {"start": Marker("<tool_call>", 7)}, None)
    card = make_card(ServedNames("a"), 0, tmp_path / "engine", _engine(tmp_path / "engine"), markers)
    assert (card.takes_tools, card.tool_format, card.tool_markers, card.reasoning) == (
        True,
        ToolFormat.HERMES,
        {"start": Marker("<tool_call>", 7)},
        None,
    )


def test_card_digest_is_of_tokenizer_and_template_alone(tmp_path: Path) -> None:
    first, other = _engine(tmp_path / "first"), _engine(tmp_path / "other", "{{ messages }} ")
    digests = {
        make_card(ServedNames("a"), 0, tmp_path / folder, manifest, NO_MARKERS).digest
        for folder, manifest in (("first", first), ("other", other))
    }
    assert len(digests) == 2
    first.digests[layout.WEIGHTS_FILE] = "of other weights"
    assert make_card(ServedNames("a"), 0, tmp_path / "first", first, NO_MARKERS).digest in digests


def test_card_created_is_now_or_what_the_build_is_told() -> None:
    assert abs(build_time({}) - time.time()) < 10
    assert build_time({SOURCE_DATE_EPOCH: "86400"}) == 86400
    for text in ("", "now", "-1", "1.5", "9" * 13):
        with pytest.raises(ConfigError, match=SOURCE_DATE_EPOCH):
            build_time({SOURCE_DATE_EPOCH: text})


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Llama-3.1-8B", "Llama-3.1-8B"),
        ("my model (new)!", "my-model-new"),
        ("_", "model"),
        ("日本", "model"),
        ("a" * 200, "a" * 128),
        ("models--meta-llama--Llama-3/snapshots/0a1b", "meta-llama/Llama-3"),
        ("models--gpt2/snapshots/0a1b", "gpt2"),
    ],
)
def test_card_default_name_is_of_the_folder_or_of_the_hub(tmp_path: Path, folder: str, name: str) -> None:
    assert default_served_name(tmp_path / folder) == name
    assert ServedNames(name).all == (name,)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "ä", "a" * 129, '"', "{}"])
def test_card_what_is_no_name_is_refused_by_option(name: str) -> None:
    with pytest.raises(ConfigError, match="--served-name"):
        ServedNames(name)
    with pytest.raises(ConfigError, match="--alias"):
        ServedNames("good", (name,))


def test_card_names_are_given_once_and_to_one_model() -> None:
    for aliases in (("a",), ("b", "b")):
        with pytest.raises(ConfigError, match="given twice"):
            ServedNames("a", aliases)
    other = ModelCard("large", 0, 8, aliases=("gpt-4",))
    check_names_are_free(ServedNames("small", ("tiny",)), [other])
    for names in (ServedNames("large"), ServedNames("small", ("gpt-4",))):
        with pytest.raises(ConfigError, match="served as 'large'"):
            check_names_are_free(names, [other])
