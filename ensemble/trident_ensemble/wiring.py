"""How the models of a repository are joined: renders every file of it but the engine.

Owns the ensemble's steps (which tensor flows where) and the scheduling that each model needs from Triton. Never holds a
tensor's shape (that is `tensors`) and never writes to disk.

Why each model is scheduled as it is:

- no model uses Triton's dynamic batcher: it drops a cancelled request inside an ensemble and never ends the ensemble's
  own, which then counts as in flight for ever;
- the core takes requests as they come and answers through a response sender: its own scheduler does the batching;
- postprocessing may have any number of instances, because the core lets one chunk of a stream be on its way at a time;
- the unary front is there for `infer` over HTTP and gRPC, which Triton refuses for models that may stream.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from trident_ensemble.acknowledgements import NUM_INSTANCES
from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import PARAMETER, ModelCard, parse_card, render_card
from trident_ensemble.contract.settings import (
    CoreSettings,
    TextSettings,
    UnarySettings,
    parse_parameters,
    render_parameters,
)
from trident_ensemble.contract.tensors import TensorSpec

_SHELL = '''"""Triton loads this file; everything is in the package."""

from {package}.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def model_shell(package: str) -> str:
    """Return the text of the file that Triton loads for a model or backend whose code is in a package."""
    return _SHELL.format(package=package)


@dataclass(frozen=True)
class Step:
    """One model of the ensemble. Tensors keep their names from step to step."""

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def ensemble_steps(names: ModelNames) -> tuple[Step, Step, Step]:
    """Return the steps of the ensemble of these models: preprocessing, core, postprocessing."""
    return (
        Step(names.preprocessing, tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS),
        Step(names.core, tensors.CORE_STEP_INPUTS, tensors.CORE_OUTPUTS),
        Step(names.postprocessing, tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS),
    )


def default_instances() -> int:
    """Return how many tokenizer and de-tokenizer instances suit this machine: a quarter of its cores, 1 to 4.

    Each is a process; on few cores a second one only takes time from the engine.
    """
    return max(1, min(4, (os.cpu_count() or 1) // 4))


@dataclass(frozen=True)
class RepositorySettings:
    """The choices that a repository leaves open; None means the default for this machine.

    Args:
        preprocessing_instances: tokenizer processes.
        postprocessing_instances: de-tokenizer processes.
        core: the core's serving parameters.
        names: of the models.
    """

    preprocessing_instances: int | None = None
    postprocessing_instances: int | None = None
    core: CoreSettings = field(default_factory=CoreSettings)
    names: ModelNames = field(default_factory=ModelNames)

    def __post_init__(self) -> None:
        for name in ("preprocessing_instances", "postprocessing_instances"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, not {value}")
            if value is not None and value > NUM_INSTANCES:
                raise ConfigError(f"{name}: must be at most {NUM_INSTANCES}, not {value}")


def render_repository(settings: RepositorySettings, card: ModelCard) -> dict[str, str]:
    """Return every text file of the models, by its path relative to the repository.

    Args:
        settings: the choices.
        card: what clients are to know; the ensemble's configuration holds it.
    """
    names = settings.names
    preprocessing, core, postprocessing = steps = ensemble_steps(names)
    default = default_instances()
    configs = (
        _tokenizer(preprocessing, settings.preprocessing_instances or default, names),
        _core(core, settings.core),
        _tokenizer(postprocessing, settings.postprocessing_instances or default, names),
        _ensemble(names, steps, card),
        _unary(names),
    )
    files = {f"{config.name}/{layout.CONFIG_FILE}": text_format.MessageToString(config) for config in configs}
    for model, package in (
        (names.preprocessing, "trident_preprocessing"),
        (names.postprocessing, "trident_postprocessing"),
        (names.unary, "trident_ensemble"),
    ):
        files[f"{model}/1/{layout.MODEL_FILE}"] = model_shell(package)
    files[f"{names.ensemble}/1/.gitkeep"] = ""
    return files


def read_card(config: str) -> ModelCard | None:
    """Return the card in the text of an ensemble's config.pbtxt; None where there is none.

    Raises:
        ConfigError: the card cannot be read.
    """
    parameters = text_format.Parse(config, pb.ModelConfig(), allow_unknown_field=True).parameters
    return parse_card(parameters[PARAMETER].string_value) if PARAMETER in parameters else None


def step_names(config: str) -> tuple[str, ...]:
    """Return the names of an ensemble's steps from the text of its config.pbtxt; none for what is no ensemble.

    The configuration may be anyone's: one that cannot be read, or of a newer Triton, counts as none of ours.
    """
    try:
        parsed = text_format.Parse(config, pb.ModelConfig(), allow_unknown_field=True)
    except text_format.ParseError:
        return ()
    return tuple(step.model_name for step in parsed.ensemble_scheduling.step)


def read_core_settings(config: str) -> CoreSettings:
    """Return the core's settings from the text of its config.pbtxt.

    Raises:
        ConfigError: a key is unknown or malformed.
    """
    parameters = text_format.Parse(config, pb.ModelConfig()).parameters
    return parse_parameters(CoreSettings, {key: value.string_value for key, value in parameters.items()})


def read_num_instances(config: str) -> int:
    """Return how many instances the text of a model's config.pbtxt asks for."""
    groups = text_format.Parse(config, pb.ModelConfig()).instance_group
    return sum(group.count for group in groups)


def with_core_settings(config: str, settings: CoreSettings) -> str:
    """Return the text of the core's config.pbtxt with other settings."""
    changed = text_format.Parse(config, pb.ModelConfig())
    for key, parameter in _parameters(settings).items():
        changed.parameters[key].CopyFrom(parameter)
    del changed.instance_group[:]
    changed.instance_group.extend(_core_instance(settings))
    text: str = text_format.MessageToString(changed)
    return text


def _inputs(specs: Sequence[TensorSpec]) -> list[pb.ModelInput]:
    return [
        pb.ModelInput(
            name=spec.name,
            data_type=f"TYPE_{spec.dtype}",
            dims=spec.dims,
            optional=spec.optional,
        )
        for spec in specs
    ]


def _outputs(specs: Sequence[TensorSpec]) -> list[pb.ModelOutput]:
    return [pb.ModelOutput(name=spec.name, data_type=f"TYPE_{spec.dtype}", dims=spec.dims) for spec in specs]


def _parameters(settings: TextSettings | CoreSettings | UnarySettings) -> dict[str, pb.ModelParameter]:
    return {key: pb.ModelParameter(string_value=text) for key, text in render_parameters(settings).items()}


def _on_cpu(count: int) -> list[pb.ModelInstanceGroup]:
    return [pb.ModelInstanceGroup(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)]


def _core_instance(settings: CoreSettings) -> list[pb.ModelInstanceGroup]:
    """Return one instance, on the first of its GPUs; an engine in several parts starts the others itself."""
    if not settings.gpu:
        return _on_cpu(1)
    return [pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_GPU, gpus=settings.gpu[:1])]


def _tokenizer(step: Step, instances: int, names: ModelNames) -> pb.ModelConfig:
    return pb.ModelConfig(
        name=step.model,
        backend="python",
        max_batch_size=1,
        input=_inputs(step.inputs),
        output=_outputs(step.outputs),
        instance_group=_on_cpu(instances),
        parameters=_parameters(TextSettings(names.core)),
    )


def _core(step: Step, settings: CoreSettings) -> pb.ModelConfig:
    return pb.ModelConfig(
        name=step.model,
        backend=layout.BACKEND,
        max_batch_size=1,
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
        input=_inputs(tensors.CORE_INPUTS),
        output=_outputs(step.outputs),
        instance_group=_core_instance(settings),
        parameters=_parameters(settings),
    )


def _ensemble(names: ModelNames, steps: Sequence[Step], card: ModelCard) -> pb.ModelConfig:
    scheduling = pb.ModelEnsembling(
        step=[
            pb.ModelEnsembling.Step(
                model_name=step.model,
                model_version=-1,
                input_map={spec.name: spec.name for spec in step.inputs},
                output_map={spec.name: spec.name for spec in step.outputs},
            )
            for step in steps
        ]
    )
    return pb.ModelConfig(
        name=names.ensemble,
        platform="ensemble",
        max_batch_size=1,
        input=_inputs(tensors.ENSEMBLE_INPUTS),
        output=_outputs(tensors.ENSEMBLE_OUTPUTS),
        ensemble_scheduling=scheduling,
        parameters={PARAMETER: pb.ModelParameter(string_value=render_card(card))},
    )


def _unary(names: ModelNames) -> pb.ModelConfig:
    return pb.ModelConfig(
        name=names.unary,
        backend="python",
        max_batch_size=1,
        input=_inputs(tensors.ENSEMBLE_INPUTS),
        output=_outputs(tensors.ENSEMBLE_OUTPUTS),
        instance_group=_on_cpu(1),
        parameters=_parameters(UnarySettings(ensemble=names.ensemble)),
    )
