"""The preprocessing model as Triton's Python backend loads it.

Owns the tensors: a prompt or messages in, token ids out, and the refusal of request parameters nobody knows. The only
file here that knows Triton; the rest is `tokenizer`'s. Keeps nothing of a request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trident_ensemble import layout, tensors
from trident_ensemble.errors import RequestError, TridentError, triton_code, wire_message
from trident_ensemble.settings import TextSettings, parse_parameters
from trident_preprocessing.tokenizer import load_tokenizer


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer of the core model's engine.

        Raises:
            ConfigError: an unknown parameter in the model's configuration.
            ArtifactError: the core model has no engine, or its tokenizer cannot be loaded.
        """
        settings = parse_parameters(TextSettings, json.loads(args["model_config"]).get("parameters", {}))
        folder = layout.engine_folder(Path(args["model_repository"]), settings.core_model)
        self._tokenizer = load_tokenizer(folder)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a bad request gets an error of its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            _check_parameters(json.loads(request.parameters() or "{}"))
            token_ids = self._tokenizer.encode(_text(request, tensors.TEXT_INPUT), _text(request, tensors.MESSAGES))
        except TridentError as error:
            return _failure(error)
        except Exception as error:  # whatever it is, the other requests of the batch must be answered
            return _failure(TridentError(f"preprocessing failed: {error!r}"))
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(tensors.INPUT_IDS.name, np.array([token_ids], np.int32)),
                pb_utils.Tensor(tensors.BAD_WORDS_LIST.name, np.full((1, 2, 1), -1, np.int32)),
                # Whoever comes through here leaves through postprocessing, which acknowledges.
                pb_utils.Tensor(tensors.FLOW_CONTROL.name, np.array([[True]], np.bool_)),
            ]
        )


def _check_parameters(parameters: dict[str, Any]) -> None:
    """Refuse what nobody knows: of a misspelt field the generate endpoints make a request parameter."""
    for name in parameters:
        if name not in tensors.KNOWN_PARAMETERS:
            known = ", ".join(spec.name for spec in tensors.ENSEMBLE_INPUTS)
            raise RequestError(name, f"unknown field; known are {known}")


def _text(request: Any, spec: tensors.TensorSpec) -> bytes | None:
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    if tensor is None:
        return None
    values = tensor.as_numpy().ravel()
    if values.size != 1:
        raise RequestError(spec.name, f"must hold one text, not {values.size}")
    value: bytes = values[0]
    return value


def _failure(error: TridentError) -> Any:
    code = getattr(pb_utils.TritonError, triton_code(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(wire_message(error), code))
