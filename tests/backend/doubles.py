"""What the core's tests stand on: small engine limits, sequences, and a client that writes everything down."""

from __future__ import annotations

import threading

import numpy as np

from trident_backend.engine.mock import next_token
from trident_backend.engine.protocol import EngineSpec
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.streams import Chunk
from trident_ensemble.errors import TridentError

SPEC = EngineSpec(vocab_size=97, max_num_seqs=4, max_num_tokens=16, max_seq_len=64, block_size=4, num_blocks=24)


def make_sequence(sequence_id: int, prompt: list[int], max_tokens: int) -> Sequence:
    return Sequence(sequence_id, list(prompt), len(prompt), max_tokens, SamplingParams(), frozenset())


def expected_tokens(prompt: list[int], max_tokens: int, vocab_size: int = SPEC.vocab_size) -> list[int]:
    """What the mock engine generates, computed one token at a time without any batching."""
    token_ids = list(prompt)
    for _ in range(max_tokens):
        token_ids.append(next_token(np.array(token_ids, np.int64), vocab_size))
    return token_ids[len(prompt) :]


class Client:
    """A responder that keeps what it is sent."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.errors: list[TridentError] = []
        self.num_finals = 0
        self.cancelled = False
        self.asked_after_final = False
        self.done = threading.Event()

    @property
    def output_ids(self) -> list[int]:
        return [token_id for chunk in self.chunks for token_id in chunk.output_ids]

    def send(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        if chunk.is_last:
            self._final()

    def fail(self, error: TridentError) -> None:
        self.errors.append(error)
        self._final()

    def is_cancelled(self) -> bool:
        self.asked_after_final |= self.done.is_set()
        return self.cancelled

    def _final(self) -> None:
        self.num_finals += 1
        self.done.set()
