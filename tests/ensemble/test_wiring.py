"""What is rendered for Triton: the checked-in repository, the ensemble's joints, the parameters."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.errors import (
    CancelledError,
    ConfigError,
    EngineError,
    QueueFullError,
    RequestError,
    TridentError,
    triton_code,
    wire_message,
)
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings, TextSettings, parse_parameters, render_parameters
from trident_ensemble.wiring import (
    RepositorySettings,
    ensemble_steps,
    read_card,
    read_core_settings,
    render_repository,
    step_names,
    with_core_settings,
)

REPOSITORY = Path(__file__).parents[2] / "model_repository"
#: As `make serve` builds it; instance counts fixed, so that the files are the same on every machine.
CHECKED_IN = RepositorySettings(preprocessing_instances=1, postprocessing_instances=1)
CARD = ModelCard("demo", 0, 1024)


def _configs(ensemble: str = "ensemble") -> dict[str, model_config_pb2.ModelConfig]:
    files = render_repository(RepositorySettings(postprocessing_instances=4, names=ModelNames(ensemble)), CARD)
    return {
        path.split("/")[0]: text_format.Parse(text, model_config_pb2.ModelConfig())
        for path, text in files.items()
        if path.endswith(layout.CONFIG_FILE)
    }


def test_wiring_the_checked_in_repository_is_what_the_code_renders() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "."], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    # The card is compared with what a build of the demo makes in tests/tools/building/test_card.py.
    card = read_card((REPOSITORY / "ensemble" / "config.pbtxt").read_text())
    assert card is not None
    rendered = render_repository(CHECKED_IN, card)
    assert sorted(tracked) == sorted(rendered), "run `make serve` and commit model_repository"
    for path, text in rendered.items():
        assert (REPOSITORY / path).read_text() == text, f"{path} was edited by hand, or the renderer has changed"


def test_wiring_every_model_is_rendered_under_its_name() -> None:
    usual = {"preprocessing", "core", "postprocessing", "ensemble", "ensemble_unary"}
    assert _configs().keys() == set(ModelNames().models) == usual
    other = {"a.b-c_preprocessing", "a.b-c_core", "a.b-c_postprocessing", "a.b-c", "a.b-c_unary"}
    assert _configs("a.b-c").keys() == set(ModelNames("a.b-c").models) == other


def test_wiring_models_of_another_name_call_each_other_and_no_others() -> None:
    """Whatever names a model: the ensemble's steps, the engine whose tokenizer is loaded, the unary front's steps."""
    names = ModelNames("small")
    for model, config in _configs(names.ensemble).items():
        assert config.name == model
        assert {step.model_name for step in config.ensemble_scheduling.step} <= set(names.steps)
        for key, value in (("core_model", "small_core"), ("ensemble", "small")):
            assert not config.parameters[key].string_value or config.parameters[key].string_value == value
    files = render_repository(RepositorySettings(names=names), CARD)
    assert step_names(files["small/config.pbtxt"]) == names.steps


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a b", "ä", "a" * 65, "trident-draining", "a\n"])
def test_wiring_what_cannot_name_a_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a model"):
        ModelNames(name)


@pytest.mark.parametrize("text", ["", 'name: "x"', "platform: 7", "new_field_of_triton { a: 1 }", "\0"])
def test_wiring_what_is_no_ensemble_of_ours_has_no_steps(text: str) -> None:
    assert step_names(text) == ()


def test_wiring_the_ensemble_and_no_other_model_has_the_card() -> None:
    for path, text in render_repository(RepositorySettings(), CARD).items():
        if path.endswith(layout.CONFIG_FILE):
            assert read_card(text) == (CARD if path == "ensemble/config.pbtxt" else None)


def test_wiring_every_tensor_of_a_step_comes_from_somewhere() -> None:
    """From the ensemble's inputs or an earlier step, in the same dtype; the ensemble's outputs from some step."""
    known = {spec.name: spec for spec in tensors.ENSEMBLE_INPUTS}
    for step in ensemble_steps(ModelNames()):
        for spec in step.inputs:
            assert known[spec.name].dtype == spec.dtype
        known |= {spec.name: spec for spec in step.outputs}
    for spec in tensors.ENSEMBLE_OUTPUTS:
        assert known[spec.name].dtype == spec.dtype


def test_wiring_no_model_uses_the_dynamic_batcher() -> None:
    """It drops a cancelled request inside an ensemble and never ends the ensemble's own."""
    configs = _configs()
    assert configs[layout.POSTPROCESSING].instance_group[0].count == 4
    assert not any(config.HasField("dynamic_batching") for config in configs.values())


def test_wiring_nothing_absolute_and_no_placeholder_is_rendered() -> None:
    for text in render_repository(RepositorySettings(), CARD).values():
        assert "${" not in text
        assert '"/' not in text


@pytest.mark.parametrize("settings", [CoreSettings(max_queue_size=7), TextSettings("other")])
def test_wiring_parameters_survive_rendering(settings: CoreSettings | TextSettings) -> None:
    wrapped = {key: {"string_value": text} for key, text in render_parameters(settings).items()}
    assert parse_parameters(type(settings), wrapped) == settings


@pytest.mark.parametrize(
    ("key", "value"), [("max_queue_sise", "1"), ("max_queue_size", "many"), ("max_queue_size", "0")]
)
def test_wiring_a_bad_parameter_is_named(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_parameters(CoreSettings, {key: {"string_value": value}})


def test_wiring_a_core_model_is_a_plain_name() -> None:
    with pytest.raises(ConfigError, match="core_model"):
        parse_parameters(TextSettings, {"core_model": {"string_value": "../../etc"}})


@pytest.mark.parametrize("instances", [0, 17])
def test_wiring_too_few_and_too_many_instances_are_refused(instances: int) -> None:
    with pytest.raises(ConfigError, match="postprocessing_instances"):
        RepositorySettings(postprocessing_instances=instances)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("x", "y"), "INVALID_ARG"),
        (QueueFullError("full"), "UNAVAILABLE"),
        (CancelledError("gone"), "CANCELLED"),
        (EngineError("broken"), "INTERNAL"),
        (TridentError("any"), "INTERNAL"),
        (ValueError("not ours"), "INTERNAL"),
    ],
)
def test_wiring_every_error_has_a_code(error: Exception, code: str) -> None:
    assert triton_code(error) == code


def test_wiring_the_newest_version_is_the_largest_number(tmp_path: Path) -> None:
    for name in ("1", "9", "10", "x", "2.tmp"):
        (tmp_path / "core" / name).mkdir(parents=True)
    assert layout.engine_folder(tmp_path / "postprocessing", "core").name == "10"


def test_wiring_a_message_can_always_be_sent() -> None:
    """Clients may quote half a surrogate pair to us."""
    assert wire_message(RequestError("messages", "no role \ud800")) == "[INVALID_ARG] messages: no role \\ud800"


def test_wiring_an_engine_on_gpus_is_one_instance_on_the_first_of_them() -> None:
    files = render_repository(RepositorySettings(core=CoreSettings(gpu=(2, 3))), CARD)
    config = text_format.Parse(files["core/config.pbtxt"], model_config_pb2.ModelConfig())
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, model_config_pb2.ModelInstanceGroup.KIND_GPU, [2])
    assert config.parameters["gpu"].string_value == "2,3"
    assert read_core_settings(files["core/config.pbtxt"]).gpu == (2, 3)
    for model in (layout.PREPROCESSING, layout.POSTPROCESSING, ModelNames().unary):
        other = text_format.Parse(files[f"{model}/config.pbtxt"], model_config_pb2.ModelConfig())
        assert {group.kind for group in other.instance_group} == {model_config_pb2.ModelInstanceGroup.KIND_CPU}


def test_wiring_serving_on_another_gpu_moves_the_instance() -> None:
    text = render_repository(RepositorySettings(core=CoreSettings(gpu=(0,))), CARD)["core/config.pbtxt"]
    moved = text_format.Parse(with_core_settings(text, CoreSettings(gpu=(1,))), model_config_pb2.ModelConfig())
    assert [list(group.gpus) for group in moved.instance_group] == [[1]]


@pytest.mark.parametrize(
    "text", ["first", "0,0", "00,0", "-1", "0;1", "1.5", ",", "0,", "1024", "99999999999", "9" * 5000]
)
def test_wiring_a_gpu_that_is_not_an_index_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"parameters.gpu: .*distinct GPU indices"):
        parse_parameters(CoreSettings, {"gpu": {"string_value": text}})
