"""The postprocessing model as Triton's Python backend loads it.

Owns the tensors: chunks in, text out, and the acknowledgement of each chunk to the core. The only file here that knows
Triton; the decoding is `detokenizer`'s. Never keeps anything of a request: any instance may get any chunk.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from trident_ensemble.acknowledgements import GONE, Acknowledger
from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.chunk_header import ALL, ChunkHeader, unpack
from trident_ensemble.contract.errors import RequestError, TridentError, triton_code, wire_message
from trident_ensemble.contract.failures import internal_error, log_failure
from trident_ensemble.contract.manifest import read_manifest
from trident_ensemble.contract.settings import TextSettings, parse_parameters
from trident_ensemble.text.detokenizer import load_detokenizer
from trident_ensemble.text.markers import MarkerReader

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
#: More than a header without context has, of as many sequences as one step of any engine computes.
_MAX_HEADER = 1 << 16


class Marker(NamedTuple):
    """A marker in a response.

    Args:
        row: of the sequence in the response.
        place: how many characters of its text come before.
        token_id: the marker.
    """

    row: int
    place: int
    token_id: int


class TritonPythonModel:
    """One instance of postprocessing."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer of the core model's engine.

        Raises:
            ConfigError: an unknown parameter in the model's configuration.
            ArtifactError: the core model has no engine, or its tokenizer cannot be read.
        """
        settings = parse_parameters(TextSettings, json.loads(args["model_config"]).get("parameters", {}))
        folder = layout.engine_folder(Path(args["model_repository"]), settings.core_model)
        self._detokenizer = load_detokenizer(folder)
        table = np.load(folder / layout.TOKEN_TABLE_FILE, allow_pickle=False).tobytes()
        self._marker_reader = MarkerReader(self._detokenizer, table)
        self._max_seq_len = read_manifest(folder).limits.max_seq_len
        self._acknowledger = Acknowledger(_instance(args["model_instance_name"]))

    def execute(self, requests: list[Any]) -> None:
        """Send one response for each request; a bad request gets an error of its own."""
        for request in requests:
            try:
                self._serve(request, request.get_response_sender())
            except BaseException as error:  # whatever it is, the other requests must be served
                log_failure("a chunk could not be answered", error)

    def _serve(self, request: Any, sender: Any) -> None:
        """Answer, and only then acknowledge, so that the stream's next chunk cannot overtake the text of this one.

        A stream whose text Triton did not take ends, as if its client were gone: what follows would have a gap.
        """
        is_gone, header = False, None
        try:
            is_gone = request.is_cancelled()
            header = unpack(_integers(request, tensors.CHUNK, _MAX_HEADER + self._max_seq_len))
            response = _success(*self._texts(request, header))
        except TridentError as error:
            response = _failure(error)
        except BaseException as error:  # whatever it is, this request must be answered
            response = _failure(internal_error("postprocessing failed", error))
        try:
            sender.send(response, flags=_FINAL)
        except BaseException as error:
            is_gone = True
            sender.send(_failure(internal_error("the text could not be sent", error)), flags=_FINAL)
        finally:
            if header is not None:
                num_chunks = GONE if is_gone else header.number
                self._acknowledger.acknowledge(header.table_id, header.column, header.secret, num_chunks)

    def _texts(self, request: Any, header: ChunkHeader) -> tuple[list[str], list[Marker]]:
        """Return the text of each sequence of a response, and the markers in all of them."""
        parts, num_context = header.parts, len(header.context_ids)
        if num_context > self._max_seq_len:
            problem = f"{num_context} context ids are too many; the most is {self._max_seq_len}"
            raise RequestError(tensors.CHUNK.name, problem)
        output_ids = self._token_ids(request, tensors.OUTPUT_IDS, len(parts))
        length, rest = divmod(len(output_ids), len(parts))
        longest = max(part.num_ids for part in parts)
        if rest or longest > length:
            problem = (
                f"must hold {len(parts)} rows of {longest} ids, as {tensors.CHUNK.name} says, not {len(output_ids)}"
            )
            raise RequestError(tensors.OUTPUT_IDS.name, problem)
        texts: list[str] = []
        markers: list[Marker] = []
        marker_ids = frozenset(header.marker_ids)
        flags = {"is_last": header.is_last, "skip_special_tokens": header.skip_special_tokens}
        for begin, (num_ids, num_hidden, num_characters) in zip(count(0, length), parts, strict=False):
            own_ids = output_ids[begin : begin + num_ids - num_hidden]
            if marker_ids:
                text, found = self._marker_reader.read(header.context_ids, own_ids, marker_ids, **flags)
                end = len(text) if num_characters == ALL else num_characters
                markers += (Marker(len(texts), place, token_id) for place, token_id in found if place <= end)
            else:
                text = self._detokenizer.text(header.context_ids, own_ids, **flags)
            texts.append(text if num_characters == ALL else text[:num_characters])
        return texts, markers

    def _token_ids(self, request: Any, spec: tensors.TensorSpec, num_sequences: int) -> list[int]:
        token_ids = _integers(request, spec, num_sequences * self._max_seq_len)
        if token_ids and min(token_ids) < 0:
            raise RequestError(spec.name, f"{min(token_ids)} is not a token id; the least is 0")
        return token_ids


def _instance(instance_name: str) -> int:
    """Return the number at the end of an instance's name, as in `postprocessing_0_3`."""
    number = instance_name.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def _integers(request: Any, spec: tensors.TensorSpec, max_size: int) -> list[int]:
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    if tensor is None:
        raise RequestError(spec.name, "missing")
    array = tensor.as_numpy().ravel()
    if array.size > max_size:
        raise RequestError(spec.name, f"{array.size} values are too many; the most is {max_size}")
    values: list[int] = array.tolist()
    return values


def _success(texts: list[str], markers: list[Marker]) -> Any:
    # Without the batch dimension, as clients of tensorrtllm_backend read it: `as_numpy("text_output")[0].decode()`.
    encoded = np.array([text.encode() for text in texts], np.object_)
    outputs = [pb_utils.Tensor(tensors.TEXT_OUTPUT.name, encoded)]
    if markers:
        outputs.append(pb_utils.Tensor(tensors.MARKERS.name, np.array([markers], np.int32)))
    return pb_utils.InferenceResponse(outputs)


def _failure(error: TridentError) -> Any:
    code = getattr(pb_utils.TritonError, triton_code(error))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(wire_message(error), code))
