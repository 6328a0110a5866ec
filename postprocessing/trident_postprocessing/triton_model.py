"""The postprocessing model as Triton's Python backend loads it.

Owns the tensors: chunks in, text out, and the acknowledgement of each chunk to the core. The only file here that knows
Triton; the decoding is `detokenizer`'s. Never keeps anything of a request: any instance may get any chunk.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trident_ensemble import layout, tensors
from trident_ensemble.acknowledgements import GONE, Acknowledger
from trident_ensemble.chunk_header import unpack
from trident_ensemble.engine_limits import read_max_seq_len
from trident_ensemble.errors import RequestError, TridentError, triton_code, wire_message
from trident_ensemble.settings import TextSettings, parse_parameters
from trident_postprocessing.detokenizer import load_detokenizer

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer of the core model's engine.

        Raises:
            ConfigError: an unknown parameter in the model's configuration.
            ArtifactError: the core model has no engine, or its tokenizer cannot be read.
        """
        settings = parse_parameters(TextSettings, json.loads(args["model_config"]).get("parameters", {}))
        folder = layout.engine_folder(Path(args["model_repository"]), settings.core_model)
        self._detokenizer = load_detokenizer(folder)
        self._max_seq_len = read_max_seq_len(folder)
        self._acknowledger = Acknowledger(_instance(args["model_instance_name"]))

    def execute(self, requests: list[Any]) -> None:
        """One response a request; a bad request gets an error of its own."""
        for request in requests:
            self._serve(request, request.get_response_sender())

    def _serve(self, request: Any, sender: Any) -> None:
        """Answer, and only then acknowledge: so the stream's next chunk cannot overtake the text of this one."""
        is_gone = request.is_cancelled()
        sender.send(self._answer(request), flags=_FINAL)
        with contextlib.suppress(RequestError):  # which the answer has told
            header = unpack(_integers(request, tensors.CHUNK))
            acknowledgement = header.acknowledgement | GONE if is_gone else header.acknowledgement
            self._acknowledger.acknowledge(header.table_id, header.slot, acknowledgement)

    def _answer(self, request: Any) -> Any:
        try:
            is_last = unpack(_integers(request, tensors.CHUNK)).is_last
            context_ids = self._token_ids(request, tensors.CONTEXT_IDS)
            text = self._detokenizer.text(context_ids, self._token_ids(request, tensors.OUTPUT_IDS), is_last=is_last)
        except TridentError as error:
            return _failure(error)
        except Exception as error:  # whatever it is, this request must be answered
            return _failure(TridentError(f"postprocessing failed: {error!r}"))
        encoded = np.array([[text.encode()]], np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor(tensors.TEXT_OUTPUT.name, encoded)])

    def _token_ids(self, request: Any, spec: tensors.TensorSpec) -> list[int]:
        token_ids = _integers(request, spec, self._max_seq_len)
        if token_ids and min(token_ids) < 0:
            raise RequestError(spec.name, f"{min(token_ids)} is no token id; the least is 0")
        return token_ids


def _instance(instance_name: str) -> int:
    """The number at the end of an instance's name, as in `postprocessing_0_3`."""
    number = instance_name.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def _integers(request: Any, spec: tensors.TensorSpec, max_size: int = 64) -> list[int]:
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    if tensor is None:
        raise RequestError(spec.name, "missing")
    array = tensor.as_numpy().ravel()
    if array.size > max_size:
        raise RequestError(spec.name, f"{array.size} values are too many; the most is {max_size}")
    values: list[int] = array.tolist()
    if spec.dims[0] >= 0 and len(values) != spec.dims[0]:
        raise RequestError(spec.name, f"must hold {spec.dims[0]} values, not {len(values)}")
    return values


def _failure(error: TridentError) -> Any:
    code = getattr(pb_utils.TritonError, triton_code(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(wire_message(error), code))
