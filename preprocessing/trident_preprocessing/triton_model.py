"""The preprocessing model as Triton's Python backend loads it.

Owns the tensors: a prompt or messages and bad words in, token ids out, and the refusal of request parameters nobody
knows. The only file here that knows Triton; the rest is `tokenizer`'s. Keeps nothing of a request.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trident_ensemble import layout, tensors
from trident_ensemble.errors import RequestError, TridentError, triton_code, wire_message
from trident_ensemble.failures import internal_error
from trident_ensemble.settings import TextSettings, parse_parameters
from trident_preprocessing.bad_words import TokenIds, pack_words
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.tokenizer import load_tokenizer

_PROMPT_FIELDS = frozenset(field.name for field in fields(PromptRequest))
#: A request that only ends another has no prompt; its input must have something in it all the same.
_NO_PROMPT = [0]


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
            token_ids, bad_words = self._tokenize(_read(request))
        except TridentError as error:
            return _failure(error)
        except BaseException as error:  # whatever it is, the other requests of the batch must be answered
            return _failure(internal_error("preprocessing failed", error))
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(tensors.INPUT_IDS.name, np.array([token_ids], np.int32)),
                pb_utils.Tensor(tensors.BAD_WORDS_LIST.name, pack_words(bad_words)[None]),
                # Whoever comes through here leaves through postprocessing, which acknowledges.
                pb_utils.Tensor(tensors.FLOW_CONTROL.name, np.array([[True]], np.bool_)),
            ]
        )

    def _tokenize(self, values: dict[str, list[Any]]) -> tuple[list[int], list[TokenIds]]:
        if values.get(tensors.STOP.name) == [True]:
            return _NO_PROMPT, []
        bad_words = self._tokenizer.bad_words.token_ids(values.get(tensors.BAD_WORDS.name, []))
        prompt = PromptRequest(**{name: value[0] for name, value in values.items() if name in _PROMPT_FIELDS})
        return self._tokenizer.encode(prompt), bad_words


def _check_parameters(parameters: dict[str, Any]) -> None:
    """Refuse what nobody knows: of a misspelt field the generate endpoints make a request parameter."""
    for name in parameters:
        if name not in tensors.KNOWN_PARAMETERS:
            known = ", ".join(spec.name for spec in tensors.ENSEMBLE_INPUTS)
            raise RequestError(name, f"unknown field; known are {known}")


def _read(request: Any) -> dict[str, list[Any]]:
    """The request's inputs by name; of one whose shape says so, one value."""
    values: dict[str, list[Any]] = {}
    for spec in tensors.PREPROCESSING_INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
        if tensor is None:
            continue
        values[spec.name] = tensor.as_numpy().reshape(-1).tolist()
        if spec.dims == (1,) and len(values[spec.name]) != 1:
            raise RequestError(spec.name, f"must hold one value, not {len(values[spec.name])}")
    return values


def _failure(error: TridentError) -> Any:
    code = getattr(pb_utils.TritonError, triton_code(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(wire_message(error), code))
