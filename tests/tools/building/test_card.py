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
from trident_ensemble.contract.errors import CheckpointError, ConfigError
from trident_ensemble.contract.manifest import Manifest, read_manifest
from trident_ensemble.contract.model_card import Marker, ModelCard, Reasoning, ToolFormat, parse_card, render_card
from trident_ensemble.wiring import read_card
from trident_preprocessing.chat.template_probe import write_template_profiles
from trident_tools.building import card as card_module
from trident_tools.building.card import (
    SOURCE_DATE_EPOCH,
    ChatFacts,
    ServedNames,
    build_time,
    chat_lines,
    check_names_are_free,
    default_served_name,
    find_chat_facts,
    make_card,
)
from trident_tools.building.output_markers import OutputMarkers

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "tools" / "demo" / "checkpoint"
NOTHING = ChatFacts(takes_messages=False, markers=OutputMarkers())
WITH_TOOLS = """
{%- for tool in tools or [] %}{{- tool | tojson }}{% endfor %}
{%- for message in messages %}
    {{- message.role ~ ': ' ~ (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- (call.function.arguments | tojson) ~ '}</tool_call>' }}
    {%- endfor %}
    {%- if message.reasoning_content %}{{- '<think>' ~ message.reasoning_content ~ '</think>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: <think>' }}{% endif %}
"""


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
    [name] = re.findall(r"--served-name (\S+)", makefile)
    manifest = _engine(tmp_path / "engine")
    facts = find_chat_facts(open_checkpoint(DEMO), tmp_path / "engine")
    made = make_card(ServedNames(name), build_time({SOURCE_DATE_EPOCH: epoch}), manifest, facts)
    assert read_card((ROOT / "model_repository" / "ensemble" / "config.pbtxt").read_text()) == made


def test_card_digest_is_of_tokenizer_and_template_alone(tmp_path: Path) -> None:
    first, other = _engine(tmp_path / "first"), _engine(tmp_path / "other", "{{ messages }} ")
    digests = {make_card(ServedNames("a"), 0, manifest, NOTHING).digest for manifest in (first, other)}
    assert len(digests) == 2
    first.digests[layout.WEIGHTS_FILE] = "of other weights"
    assert make_card(ServedNames("a"), 0, first, NOTHING).digest in digests


def test_card_has_what_the_template_shows_of_tools_and_reasoning(tmp_path: Path) -> None:
    _engine(tmp_path / "engine", WITH_TOOLS)
    facts = find_chat_facts(open_checkpoint(DEMO), tmp_path / "engine")
    manifest = read_manifest(tmp_path / "engine")
    card = make_card(ServedNames("a", ("b",)), 7, manifest, facts)
    assert card == ModelCard(
        "a",
        7,
        1024,
        card.digest,
        ("b",),
        takes_messages=True,
        takes_tools=True,
        tool_format=ToolFormat.HERMES,
        tool_markers={"start": Marker("<tool_call>"), "end": Marker("</tool_call>")},
        reasoning=Reasoning(Marker("<think>"), Marker("</think>"), starts_in_prompt=True),
    )
    assert parse_card(render_card(card)) == card
    assert chat_lines(facts) == [
        ("tools", "the template shows them, calls are written as hermes"),
        ("reasoning", "from <think> to </think>"),
    ]
    assert chat_lines(NOTHING) == []
    unknown = ChatFacts(takes_messages=True, markers=OutputMarkers(takes_tools=True))
    assert "no format that is known" in chat_lines(unknown)[0][1]


def test_card_a_checkpoint_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    _engine(folder)
    (folder / layout.TOKENIZER_FOLDER / "chat_template.jinja").unlink()
    write_template_profiles(folder)
    assert find_chat_facts(open_checkpoint(DEMO), folder) == ChatFacts(False, OutputMarkers())


def test_card_a_template_that_takes_too_long_for_tools_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object) -> None:
        while True:
            time.sleep(0.01)

    _engine(tmp_path / "engine")
    monkeypatch.setattr(card_module, "_MAX_SECONDS", 0.2)
    monkeypatch.setattr(card_module, "find_markers", endless)
    with pytest.raises(CheckpointError, match=r"takes more than 0\.2 s for a few messages with tools"):
        find_chat_facts(open_checkpoint(DEMO), tmp_path / "engine")


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
