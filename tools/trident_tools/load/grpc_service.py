"""Requests over Triton's gRPC streams.

Owns the tensors of a request and the reading of its responses. Each request is a call of its own on a channel that all
clients share. Only tritonclient's protocol is used and not its client, which closes its channel a second time when it
is collected; gRPC counts the channels that its greenlets serve, and then lets others starve. Import it in a process
patched by gevent: waiting lets other greenlets run. Never measures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.experimental.gevent
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.errors import ServerError
from trident_tools.load.client_records import ClientStream
from trident_tools.load.prompts import Prompt
from trident_tools.load.target import FailedRequestError, Target
from trident_tools.load.tensor_values import raw_bytes, tensor_of

_LIVE_TIMEOUT_S = 5.0
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def open_service(target: Target) -> GrpcService:
    """Open the server at `host:port`.

    Raises:
        ServerError: the server does not answer or does not serve the model, or the model lacks an input.
    """
    grpc.experimental.gevent.init_gevent()
    return GrpcService(target)


class GrpcService:
    """A model of a Triton server, asked over gRPC.

    Args:
        target: the server, and what every request carries.

    Raises:
        ServerError: the server does not answer or does not serve the model, or the model lacks an input.
    """

    def __init__(self, target: Target) -> None:
        self._model = target.model or layout.ENSEMBLE
        self._channel = grpc.insecure_channel(target.url, _OPTIONS)
        try:
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            self._dtypes = self._read_dtypes(target.url)
            self._fixed = service_pb2.ModelInferRequest(model_name=self._model)
            fields = {tensors.STREAM.name: True, **target.fields}
            if target.ignore_eos:
                fields[tensors.IGNORE_EOS.name] = True
            for name, value in fields.items():
                self._add(self._fixed, name, value)
        except BaseException:
            self._channel.close()
            raise

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self._model

    def client(self) -> GrpcClient:
        """Return a connection for one user."""
        return GrpcClient(self)

    def close(self) -> None:
        """Close the channel that clients share."""
        self._channel.close()

    def call(self, prompt: Prompt) -> Any:
        """Send a request; return an iterator over its responses.

        Raises:
            ServerError: the model lacks an input.
        """
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(self._fixed)
        if prompt.text is not None:
            self._add(request, tensors.TEXT_INPUT.name, prompt.text)
        else:
            self._add(request, tensors.MESSAGES.name, json.dumps(prompt.messages))
        self._add(request, tensors.MAX_TOKENS.name, prompt.max_tokens)
        return self._stub.ModelStreamInfer(iter([request]))

    def _read_dtypes(self, url: str) -> Mapping[str, str]:
        """Return the data type of each of the model's inputs by name."""
        try:
            metadata = self._stub.ModelMetadata(
                service_pb2.ModelMetadataRequest(name=self._model), timeout=_LIVE_TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise ServerError(f"{url} does not serve {self._model!r}: {_message(error)}") from None
        return {tensor.name: tensor.datatype for tensor in metadata.inputs}

    def _add(self, request: Any, name: str, value: Any) -> None:
        """Put a tensor of shape [1, number of values] into a request."""
        dtype = self._dtypes.get(name)
        if dtype is None:
            hint = "; say --no-ignore-eos" if name == tensors.IGNORE_EOS.name else ""
            raise ServerError(f"{self._model} has no input {name!r}{hint}; it has {', '.join(self._dtypes)}")
        try:
            array = tensor_of(dtype, value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ServerError(f"{name}: {value!r} is not {dtype}: {error}") from None
        request.inputs.add(name=name, datatype=dtype, shape=array.shape)
        request.raw_input_contents.append(raw_bytes(array))


class GrpcClient:
    """One user of the service, whose channel it shares with others.

    Args:
        service: makes the calls.
    """

    def __init__(self, service: GrpcService) -> None:
        self._service = service

    def ask(self, prompt: Prompt, stream: ClientStream) -> None:
        """Send a prompt, and note its responses until the last one.

        Raises:
            FailedRequestError: the request was not answered in full.
        """
        call = self._service.call(prompt)
        try:
            for reply in call:
                now = time.perf_counter()
                if reply.error_message:
                    raise FailedRequestError(" ".join(reply.error_message.split()))
                if reply.infer_response.outputs:
                    _note(stream, now, InferResult(reply.infer_response))
        except grpc.RpcError as error:
            raise FailedRequestError(_message(error)) from None
        finally:
            call.cancel()  # of no effect on one that has ended

    def close(self) -> None:
        """Do nothing, because nothing is held between requests."""


def _note(stream: ClientStream, now: float, result: InferResult) -> None:
    output_ids = result.as_numpy(tensors.OUTPUT_IDS.name)
    if output_ids is None:
        stream.received(now, None)
    elif output_ids.size:
        stream.received(now, output_ids.size)
    finish_reason = result.as_numpy(tensors.FINISH_REASON.name)
    if finish_reason is None:
        return
    stream.finish_reason = finish_reason.reshape(-1)[0].decode()
    stream.num_input_tokens = int(result.as_numpy(tensors.NUM_INPUT_TOKENS.name).reshape(-1)[0])
    stream.num_output_tokens = int(result.as_numpy(tensors.NUM_OUTPUT_TOKENS.name).reshape(-1)[0])


def _message(error: Any) -> str:
    """Return one line with the name of the code and the message of the server or of gRPC itself."""
    return f"[{error.code().name}] {' '.join(str(error.details()).split())}"
