"""Two models in one repository, behind one tritonserver and one gateway: each answers as itself, and both drain.

The tests share one server; the last one ends it.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tritonclient import http as httpclient

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.clients import ask_grpc, make_inputs
from tests.e2e.server import Server, get, post, serve, until
from tests.ports import free_ports
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import PARAMETER, parse_card

PROMPT = "the quick brown fox"
MAX_TOKENS = 24
#: The ensembles, and the names by which the gateway serves them.
MODELS = {"ensemble": "first", "v2.small": "v2.small"}
MAX_SEQ_LEN = 4096
#: So many that all requests are still running when the last of them is seen to run.
MANY_TOKENS = 3000
OPTIONS = (
    *("--max-num-seqs", "8", "--max-seq-len", str(MAX_SEQ_LEN), "--kv-cache", "16384t"),
    *("--preprocessing-instances", "1"),
)


@dataclass(frozen=True)
class Pair:
    """The server of both models, the gateway's port, and the checkpoints by the names of the ensembles."""

    server: Server
    openai_port: int
    checkpoints: dict[str, Path]

    @property
    def gateways(self) -> list[int]:
        """The processes that listen at the gateway's port."""
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            if "gateway" in words and f"--port={self.openai_port}" in words:
                pids.append(int(folder.name))
        return pids

    def openai(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the gateway answers."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.openai_port}/v1/{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    def announced(self) -> bool:
        return "OpenAI's API: " in self.server.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("several")
    checkpoints = {
        "ensemble": checkpoint,
        "v2.small": make_checkpoint(folder / "qwen2", "qwen2", max_position_embeddings=MAX_SEQ_LEN),
    }
    repository = build(checkpoints["ensemble"], folder / "repository", "--served-name", "first", *OPTIONS)
    build(checkpoints["v2.small"], repository, "--name", "v2.small", "--alias", "tiny", *OPTIONS)
    port, private_port = free_ports(2)
    options = ("--openai-port", str(port), "--openai-private-port", str(private_port))
    with serve(repository, folder / "log", *options, "--drain-timeout", "300") as server:
        yield Pair(server, port, checkpoints)


def _reference(checkpoint: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None
        )
    token_ids: list[int] = output[0, ids.shape[1] :].tolist()
    return token_ids


def test_several_models_each_answers_as_itself(pair: Pair) -> None:
    """Streams of both at the same time, and their unary fronts, against transformers; their cards; their metrics."""
    expected = {name: _reference(checkpoint) for name, checkpoint in pair.checkpoints.items()}
    assert expected["ensemble"] != expected["v2.small"]
    fields = {"text_input": PROMPT, "max_tokens": MAX_TOKENS, "ignore_eos": True}

    def ask(name: str) -> list[int]:
        return ask_grpc(pair.server.grpc, name, stream=True, **fields).output_ids

    with ThreadPoolExecutor(8) as pool:
        asked = list(MODELS) * 4
        assert list(pool.map(ask, asked)) == [expected[name] for name in asked]
    client = httpclient.InferenceServerClient(pair.server.http)
    for ensemble, served_name in MODELS.items():
        names = ModelNames(ensemble)
        answer = client.infer(names.unary, make_inputs(httpclient, fields))
        assert answer.as_numpy("output_ids").reshape(-1).tolist() == expected[ensemble]
        card = parse_card(client.get_model_config(ensemble)["parameters"][PARAMETER]["string_value"])
        assert (card.name, card.max_seq_len, card.takes_messages) == (served_name, MAX_SEQ_LEN, True)
        labels = {"model": names.core, "finish_reason": "length"}
        until(partial(_counts, pair.server, 5, labels), 60, f"the metrics of {names.core} count its requests")
    assert post(pair.server, "/v2/models/ensemble/generate", {"text_input": "", "max_tokens": 1})[0] == 400


def _counts(server: Server, num_requests: int, labels: dict[str, str]) -> bool:
    return server.metric("nv_llm_requests_total", **labels) == num_requests


def test_several_models_gateway_serves_both_and_is_started_again_alone(pair: Pair) -> None:
    until(pair.announced, 60, "the gateway is announced")
    listed = {model["id"] for model in pair.openai("models")["data"]}
    assert listed == {"first", "v2.small", "tiny"}

    def texts() -> list[str]:
        body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        return [pair.openai("completions", {**body, "model": name})["choices"][0]["text"] for name in sorted(listed)]

    first, tiny, small = texts()
    assert tiny == small != first
    (before,) = pair.gateways
    os.kill(before, signal.SIGKILL)
    until(lambda: pair.gateways not in ([], [before]), 60, "another gateway is there")
    until(lambda: "tritonserver goes on" in pair.server.log.read_text(errors="replace"), 60, "it is said")
    until(lambda: _answers(pair), 60, "the other gateway answers")
    assert get(pair.server, "/v2/health/ready") == 200
    assert texts() == [first, tiny, small]


def _answers(pair: Pair) -> bool:
    try:
        return len(pair.openai("models")["data"]) == 3
    except OSError:
        return False


def _are_running(server: Server, num_each: int) -> bool:
    cores = [ModelNames(name).core for name in MODELS]
    active = [server.metric("nv_trt_llm_request_metrics", request_type="active", model=core) for core in cores]
    return active == [num_each] * len(cores)


def test_several_models_drain_lets_both_finish_and_the_gateway_first(pair: Pair) -> None:
    until(pair.announced, 60, "the gateway is announced")
    body = {"prompt": PROMPT, "max_tokens": MANY_TOKENS, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(4) as pool:
        streams = [
            pool.submit(
                ask_grpc,
                pair.server.grpc,
                name,
                text_input=PROMPT,
                max_tokens=MANY_TOKENS,
                ignore_eos=True,
                stream=True,
            )
            for name in MODELS
        ]
        plain = [pool.submit(pair.openai, "completions", {**body, "model": name}) for name in MODELS.values()]
        until(partial(_are_running, pair.server, 2), 60, "all requests are running")
        pair.server.process.send_signal(signal.SIGTERM)
        assert [len(stream.result(300).output_ids) for stream in streams] == [MANY_TOKENS] * 2
        assert [answer.result(300)["usage"]["completion_tokens"] for answer in plain] == [MANY_TOKENS] * 2
    assert pair.server.process.wait(60) == 0, pair.server.log.read_text(errors="replace")[-4500:]
    assert pair.gateways == []
