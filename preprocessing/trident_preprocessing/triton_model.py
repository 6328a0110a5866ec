"""The preprocessing model as Triton's Python backend loads it.

Owns the tensors: a prompt, as text, messages or ids, and bad words come in, and token ids go out. Requests are answered
side by side, each when it is done. The only file of the package that knows Triton. Never tokenizes: `prompt_tokenizer`
does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.client_input import check_parameters
from trident_ensemble.contract.errors import ContextLengthError, RequestError, TridentError, triton_code, wire_message
from trident_ensemble.contract.failures import internal_error
from trident_ensemble.contract.settings import TextSettings, parse_parameters
from trident_preprocessing.lanes import Lane, Lanes
from trident_preprocessing.prompt_request import PromptRequest
from trident_preprocessing.prompt_tokenizer import load_tokenizer
from trident_preprocessing.tokens.bad_words import TokenIds, pack_words

_SINGLE_FIELDS = frozenset(field.name for field in fields(PromptRequest)) - {tensors.PROMPT_TOKEN_IDS.name}
_BYTES_OF_AN_ID = 8
#: A request that only stops another has no prompt, but the core's input must not be empty.
_NO_PROMPT = [0]
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_LAST_ANSWERS_S = 5.0


class TritonPythonModel:
    """One instance of the preprocessing model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer of the core model's engine.

        Raises:
            ConfigError: the model's configuration has an unknown parameter.
            ArtifactError: the core model has no engine, or its tokenizer cannot be loaded.
        """
        settings = parse_parameters(TextSettings, json.loads(args["model_config"]).get("parameters", {}))
        folder = layout.engine_folder(Path(args["model_repository"]), settings.core_model)
        self._tokenizer = load_tokenizer(folder)
        self._lanes = Lanes()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request; answers leave through the response senders, and a bad request gets an error."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                check_parameters(json.loads(request.parameters() or "{}"), tensors.ENSEMBLE_INPUTS)
                values = self._read(request)
                lane = Lane.CHATS if tensors.MESSAGES.name in values else Lane.PROMPTS
                self._lanes.put(lane, _num_bytes(values), partial(self._answer, sender, values))
            except TridentError as error:
                sender.send(_failure(error), flags=_FINAL)
            except Exception as error:  # whatever it is, the other requests of the batch must be answered
                sender.send(_failure(internal_error("preprocessing failed", error)), flags=_FINAL)

    def finalize(self) -> None:
        """Answer the requests that are left, and end the threads."""
        self._lanes.close(_LAST_ANSWERS_S)

    def _answer(self, sender: Any, values: dict[str, list[Any]]) -> None:
        try:
            sender.send(self._response(values), flags=_FINAL)
        except Exception as error:
            pb_utils.Logger.log_warn(f"a response could not be sent: {error}")

    def _response(self, values: dict[str, list[Any]]) -> Any:
        try:
            token_ids, bad_words = self._tokenize(values)
        except TridentError as error:
            return _failure(error)
        except BaseException as error:  # whatever it is, this request must be answered
            return _failure(internal_error("preprocessing failed", error))
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(tensors.INPUT_IDS.name, np.array([token_ids], np.int32)),
                pb_utils.Tensor(tensors.BAD_WORDS_LIST.name, pack_words(bad_words)[None]),
                # A request that comes through preprocessing is answered through postprocessing, which acknowledges.
                pb_utils.Tensor(tensors.FLOW_CONTROL.name, np.array([[True]], np.bool_)),
            ]
        )

    def _read(self, request: Any) -> dict[str, list[Any]]:
        """Return the request's inputs by name; an input of shape [1] must hold one value."""
        values: dict[str, list[Any]] = {}
        for spec in tensors.PREPROCESSING_INPUTS:
            tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
            if tensor is None:
                continue
            array = tensor.as_numpy().reshape(-1)
            if spec is tensors.PROMPT_TOKEN_IDS and array.size > self._tokenizer.max_num_ids:
                problem = f"{array.size} ids are too many: at most {self._tokenizer.max_num_ids}, even to be cut"
                raise ContextLengthError(spec.name, problem)
            values[spec.name] = array.tolist()
            if spec.dims == (1,) and len(values[spec.name]) != 1:
                raise RequestError(spec.name, f"must hold one value, not {len(values[spec.name])}")
        return values

    def _tokenize(self, values: dict[str, list[Any]]) -> tuple[list[int], list[TokenIds]]:
        if values.get(tensors.STOP.name) == [True]:
            return _NO_PROMPT, []
        bad_words = self._tokenizer.bad_words.token_ids(values.get(tensors.BAD_WORDS.name, []))
        ids = values.get(tensors.PROMPT_TOKEN_IDS.name)
        single = {name: value[0] for name, value in values.items() if name in _SINGLE_FIELDS}
        prompt = PromptRequest(**single, prompt_token_ids=ids)
        return self._tokenizer.encode(prompt), bad_words


def _num_bytes(values: Mapping[str, list[Any]]) -> int:
    """Return how many bytes of text and ids a request has."""
    num_ids = len(values.get(tensors.PROMPT_TOKEN_IDS.name, ()))
    texts = (of_field for of_field in values.values() if of_field and isinstance(of_field[0], bytes))
    return sum(len(text) for of_field in texts for text in of_field) + num_ids * _BYTES_OF_AN_ID


def _failure(error: TridentError) -> Any:
    code = getattr(pb_utils.TritonError, triton_code(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(wire_message(error), code))
