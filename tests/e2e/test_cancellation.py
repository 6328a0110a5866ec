"""A client that goes away stops costing steps long before its stream would end, and its blocks are free then."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.e2e.clients import ask_grpc, grpc_stream, make_inputs
from tests.e2e.server import Server, serve, until
from trident_ensemble.contract.chunk_header import unpack

#: Long enough to be running still when everything below is over.
ENDLESS: dict[str, Any] = {"text_input": "hello", "max_tokens": 4000, "stream": True, "ignore_eos": True}


def _goes_quiet(server: Server) -> None:
    """It is cancelled, which takes at most half a second and as many steps as are taken in it, and costs no more."""
    steps = server.num_steps
    until(lambda: server.num_active == 0, 60, "the stream is cancelled")
    until(lambda: server.num_used_blocks == 0, 60, "the blocks come back")
    assert server.num_steps - steps < ENDLESS["max_tokens"] / 2, "a stream nobody reads still takes steps"
    assert ask_grpc(server.grpc, text_input="and on", max_tokens=3, ignore_eos=True).num_output_tokens == 3


def test_cancellation_grpc_cancel(server: Server) -> None:
    with grpc_stream(server.grpc, make_inputs(grpcclient, ENDLESS)) as results:
        next(results)
        until(lambda: server.num_used_blocks > 0, 60, "the stream holds blocks")
    _goes_quiet(server)


def test_cancellation_http_disconnect(server: Server) -> None:
    connection = http.client.HTTPConnection(server.http)
    connection.request("POST", "/v2/models/ensemble/generate_stream", json.dumps(ENDLESS))
    assert connection.getresponse().readline().startswith(b"data:")
    until(lambda: server.num_used_blocks > 0, 60, "the stream holds blocks")
    connection.close()
    _goes_quiet(server)


def test_cancellation_cancel_of_a_stream_from_the_core_itself(server: Server) -> None:
    ids = grpcclient.InferInput("input_ids", [1, 3], "INT32")
    ids.set_data_from_numpy(np.array([[1, 2, 3]], np.int32))
    fields = {key: value for key, value in ENDLESS.items() if key != "text_input"}
    with grpc_stream(server.grpc, [ids, *make_inputs(grpcclient, fields)], "core") as results:
        next(results)
        until(lambda: server.num_used_blocks > 0, 60, "the stream holds blocks")
    _goes_quiet(server)


def test_cancellation_twenty_cancels_leave_their_neighbour_whole(server: Server) -> None:
    alone = ask_grpc(server.grpc, text_input="neighbour", max_tokens=300, stream=True, ignore_eos=True)
    streams = [grpc_stream(server.grpc, make_inputs(grpcclient, ENDLESS)) for _ in range(20)]
    for stream in streams:
        next(stream.__enter__())
    with grpc_stream(
        server.grpc,
        make_inputs(grpcclient, {"text_input": "neighbour", "max_tokens": 300, "stream": True, "ignore_eos": True}),
    ) as results:
        ids = next(results).as_numpy("output_ids").reshape(-1).tolist()
        for stream in streams:
            stream.__exit__(None, None, None)
        for result in results:
            ids += result.as_numpy("output_ids").reshape(-1).tolist()
    assert ids == alone.output_ids
    until(lambda: server.num_used_blocks == 0, 60, "the blocks come back")


def test_cancellation_cancelled_streams_leave_nothing_in_flight_inside_triton(
    roomy_repository: Path, tmp_path: Path
) -> None:
    """Triton says at its end which requests it still holds; with the dynamic batcher it would hold these for ever."""
    with serve(roomy_repository, tmp_path / "log") as server:
        for _ in range(3):
            with grpc_stream(server.grpc, make_inputs(grpcclient, ENDLESS)) as results:
                next(results)
            until(lambda: server.num_active == 0, 60, "the cancelled stream is answered")
    log = (tmp_path / "log").read_text(errors="replace")
    assert "Found 0 model versions that have in-flight inferences" in log
    assert "Model 'ensemble' (version 1) has" not in log


def _own_chunk(server: Server) -> list[int]:
    """What the core tells whoever calls it directly and asks for flow control: the header of a chunk of its own."""
    ids = grpcclient.InferInput("input_ids", [1, 3], "INT32")
    ids.set_data_from_numpy(np.array([[1, 2, 3]], np.int32))
    flow_control = grpcclient.InferInput("flow_control", [1, 1], "BOOL")
    flow_control.set_data_from_numpy(np.array([[True]]))
    fields = {key: value for key, value in ENDLESS.items() if key != "text_input"}
    with grpc_stream(server.grpc, [ids, flow_control, *make_inputs(grpcclient, fields)], "core") as results:
        chunk: list[int] = next(results).as_numpy("chunk").reshape(-1).tolist()
    return chunk


def test_cancellation_nobody_acknowledges_for_another_s_stream(server: Server) -> None:
    """Not by a header of one's own making; and the table is no memory that clients can register."""
    own = unpack(_own_chunk(server))
    asked: dict[str, Any] = {"text_input": "victim", "max_tokens": 400, "stream": True, "ignore_eos": True}
    alone = ask_grpc(server.grpc, **asked)
    client = grpcclient.InferenceServerClient(server.grpc)
    for name in (f"/trident-{own.table_id:016x}", f"/trident-{own.table_id:016x}/acknowledgements"):
        with pytest.raises(InferenceServerException):
            client.register_system_shared_memory("theirs", name, 64)
    with grpc_stream(server.grpc, make_inputs(grpcclient, asked)) as results:
        ids = next(results).as_numpy("output_ids").reshape(-1).tolist()
        for column in range(8):
            for number in (0, 7, 0xFFFFFFFF):
                forged = own._replace(column=column, number=number).pack()
                inputs = [
                    _tensor("chunk", np.array([forged], np.int64), "INT64"),
                    _tensor("output_ids", np.array([[[5] * own.parts[0].num_ids]], np.int32), "INT32"),
                ]
                client.infer("postprocessing", inputs)
        for result in results:
            ids += result.as_numpy("output_ids").reshape(-1).tolist()
    assert ids == alone.output_ids


def _tensor(name: str, array: npt.NDArray[Any], dtype: str) -> Any:
    tensor = grpcclient.InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return tensor
