"""A deployment with a small engine and little room, and clients that time their answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.checkpoints import make_checkpoint
from tests.e2e.build import build
from tests.e2e.clients import Answer, grpc_stream, make_inputs
from tests.e2e.server import Server

NUM_SEQS, NUM_TOKENS, SEQ_LEN, NUM_BLOCKS = 4, 64, 640, 32


@dataclass(frozen=True)
class BuildRequest:
    """One request as its client saw it; times are seconds from sending it."""

    num_input_tokens: int
    answer: Answer
    first_seconds: float
    seconds: float


class Deployment:
    """A server with a small engine, and what asks it."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint = make_checkpoint(folder / "checkpoint", "llama")
        _forget(self._checkpoint / "model.safetensors")
        limits = {
            "--max-num-seqs": NUM_SEQS, "--max-num-tokens": NUM_TOKENS, "--max-seq-len": SEQ_LEN,
            "--kv-cache": f"{NUM_BLOCKS * 32}t",
        }  # fmt: skip
        words = [word for option, value in limits.items() for word in (option, str(value))]
        self.repository = build(self._checkpoint, folder / "repository", *words)
        self._tokenizer = Tokenizer.from_file(str(self._checkpoint / "tokenizer.json"))

    def num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def ask(self, server: Server, text: str, max_tokens: int, **fields: Any) -> BuildRequest:
        """Stream one answer."""
        fields = {"text_input": text, "max_tokens": max_tokens, "stream": True, "temperature": 0.0, **fields}
        answer = Answer()
        began = time.monotonic()
        first_seconds = 0.0
        with grpc_stream(server.grpc, make_inputs(grpcclient, fields)) as results:
            for result in results:
                first_seconds = first_seconds or time.monotonic() - began
                answer.add(result)
            seconds = time.monotonic() - began
        return BuildRequest(self.num_tokens(text), answer, first_seconds, seconds)


def _forget(weights: Path) -> None:
    """Leave a model that sees its last token alone: it soon goes round in a circle, which is easily guessed."""
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    save_file(tensors, weights, metadata={"format": "pt"})
