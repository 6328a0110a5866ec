"""What the core's tests stand on: small engine limits, simulated time, sequences, and a client that writes all down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import MockEngine, next_token
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import EngineSpec, StepBatch
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize
from trident_backend.sequences.steps import Row
from trident_backend.serving.responses import Response
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.settings import CoreSettings

SPEC = EngineSpec(vocab_size=97, max_num_seqs=4, max_num_tokens=16, max_seq_len=64, block_size=4, num_blocks=24)


def make_sequence(sequence_id: int, prompt: list[int], max_tokens: int, **fields: Any) -> Sequence:
    return Sequence(sequence_id, list(prompt), len(prompt), max_tokens, **{**_PLAIN, **fields})


_PLAIN: dict[str, Any] = {"sampling": SamplingParams(), "end_ids": frozenset()}


def expected_tokens(prompt: list[int], max_tokens: int, vocab_size: int = SPEC.vocab_size) -> list[int]:
    """What the mock engine generates, computed one token at a time without any batching."""
    token_ids = list(prompt)
    for _ in range(max_tokens):
        token_ids.append(next_token(np.array(token_ids, np.int64), vocab_size))
    return token_ids[len(prompt) :]


def expected_output(sequence: Sequence, vocab_size: int = SPEC.vocab_size) -> list[int]:
    """What the timed engine generates for a request alone, with sampling and end ids, without core or scheduler."""
    sampler = Sampler(vocab_size)
    token_ids = sequence.token_ids[: sequence.num_prompt_tokens]
    for place in range(sequence.num_prompt_tokens, sequence.max_len):
        wide = next_token(np.array(token_ids, np.int64), _WIDE)
        token_ids += sampler.choose(_one_hot(np.array([wide]), vocab_size), [Row(sequence, place)]).token_ids
        if token_ids[-1] in sequence.end_ids:
            break
    return token_ids[sequence.num_prompt_tokens :]


#: Tokens are chosen out of so many and then folded: among few, the mock engine soon repeats one for ever.
_WIDE = 1009


def _one_hot(wide_ids: npt.NDArray[np.int64], vocab_size: int) -> HostLogits:
    logits = np.zeros((len(wide_ids), vocab_size), np.float32)
    logits[np.arange(len(wide_ids)), wide_ids % vocab_size] = 1.0
    return HostLogits(logits, NumpyKernels())


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def linear(base: float, per_token: float, per_pair: float = 0.0) -> Callable[[StepSize], float]:
    """Seconds of a step of a given size."""
    return lambda size: base + per_token * size.num_tokens + per_pair * size.num_pairs


class TimedEngine(MockEngine):
    """A mock engine whose steps take simulated time.

    Args:
        spec: the engine's limits.
        clock: what a step sets forward.
        seconds: how long a step of a size takes.
    """

    def __init__(self, spec: EngineSpec, clock: Clock, seconds: Callable[[StepSize], float]) -> None:
        super().__init__(replace(spec, vocab_size=_WIDE))
        self.narrow = spec
        self.clock = clock
        self.seconds = seconds
        self.last_size = StepSize()

    def submit(self, batch: StepBatch) -> None:
        super().submit(batch)
        new = np.diff(batch.subsequence_begins).astype(np.int64)
        num_pairs = int((new * batch.past_lens + new * (new + 1) // 2).sum())
        self.last_size = StepSize(len(batch.token_ids), num_pairs, len(batch.logit_rows))

    def collect(self) -> HostLogits:
        self.clock.now += self.seconds(self.last_size)
        return _one_hot(super().collect().array.argmax(axis=1), self.narrow.vocab_size)

    @property
    def spec(self) -> EngineSpec:
        return self.narrow


def make_core(
    settings: CoreSettings | None = None,
    spec: EngineSpec = SPEC,
    seconds: Callable[[StepSize], float] | None = None,
) -> tuple[EngineCore, Clock]:
    """A core on a mock engine of simulated time, 10 ms a step where nothing else is said."""
    clock = Clock()
    return EngineCore(TimedEngine(spec, clock, seconds or linear(0.01, 0.0)), settings or CoreSettings(), clock), clock


def add(core: EngineCore, *sequences: Sequence) -> None:
    for sequence in sequences:
        core.scheduler.add(sequence, core.clock())


def run_to_end(core: EngineCore, max_num_steps: int = 10_000) -> int:
    """Step until nothing is left; returns how many steps computed something."""
    num_steps = 0
    for _ in range(max_num_steps):
        if not (core.scheduler.waiting or core.scheduler.running):
            return num_steps
        num_steps += bool(core.step().output.chunks)
    raise AssertionError("it does not come to an end")


class Client:
    """A responder that keeps what it is sent."""

    def __init__(self) -> None:
        self.chunks: list[Response] = []
        self.errors: list[TridentError] = []
        self.num_finals = 0
        self.cancelled = False
        self.asked_after_final = False
        self.done = threading.Event()

    @property
    def output_ids(self) -> list[int]:
        return [token_id for chunk in self.chunks for token_id in chunk.output_ids.reshape(-1).tolist()]

    @property
    def outputs(self) -> dict[str, Any]:
        """Of the last response, beside its ids."""
        return {spec.name: values.tolist() for spec, values in self.chunks[-1].outputs}

    def send(self, response: Response) -> None:
        self.chunks.append(response)
        if response.is_final:
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
