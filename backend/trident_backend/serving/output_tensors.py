"""The output tensors of a response beside its tokens.

Owns which outputs a request has asked for, when each is due, and its values. Reads sequences, never changes one.
"""

from __future__ import annotations

import collections.abc as cabc
import math

import numpy as np

from trident_backend.requests.request import Request
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.responses import Output, ResponseSlice
from trident_backend.serving.token_spelling import TokenSpelling
from trident_ensemble.contract import tensors
from trident_ensemble.contract.tensors import TensorSpec
from trident_ensemble.text.special_tokens import TokenSpeller


class OutputTensorBuilder:
    """Builds the output tensors of responses.

    Args:
        block_size: tokens in one KV block.
        epoch_ns: when the core's clock showed 0, in nanoseconds since 1970.
        speller: knows the bytes of tokens.
    """

    def __init__(self, block_size: int, epoch_ns: int, speller: TokenSpeller) -> None:
        self._spelling = TokenSpelling(speller)
        self._block_size = block_size
        self._epoch_ns = epoch_ns

    def outputs(
        self, request: Request, slices: cabc.Sequence[ResponseSlice], *, is_first: bool = False, is_last: bool
    ) -> tuple[Output, ...]:
        """Return the output tensors that are due with one response.

        Args:
            request: the response's request.
            slices: what is in the response, by rising index of the sequence.
            is_first: the response is the first one of its request.
            is_last: the response is the last one of these sequences.
        """
        params = request.first.sampling
        # Most responses carry none: a tensor costs more than a token.
        if not (is_last or is_first or params.log_probs or len(request.sequences) > 1):
            return ()
        outputs: list[Output] = []
        if (is_first or is_last) and request.output.num_input_tokens:
            outputs.append(_integers(tensors.NUM_INPUT_TOKENS, [request.first.num_prompt_tokens]))
        if is_last or len(request.sequences) > 1:
            outputs.append(_integers(tensors.SEQUENCE_INDEX, (span.sequence.sampling.index for span in slices)))
        if params.log_probs:
            outputs += _log_probs(slices, params.num_top_log_probs)
            if request.output.token_bytes:
                outputs += self._spelling.of_output(request.output, slices)
        if is_last:
            outputs += self._ends(request, slices)
            if params.log_probs:
                sums = [math.fsum(item.log_prob for item in span.sequence.log_probs) for span in slices]
                outputs.append(Output(tensors.CUM_LOG_PROBS, np.array(sums, np.float32)))
            if params.prompt_log_probs and slices[0].sequence is request.first:
                outputs += _prompt_log_probs(request.first)
                if request.output.token_bytes:
                    outputs += self._spelling.of_prompt(request.output, request.first)
            if request.output.perf_metrics:
                outputs += self._perf_metrics(request, [span.sequence for span in slices])
        return tuple(outputs)

    def _ends(self, request: Request, slices: cabc.Sequence[ResponseSlice]) -> list[Output]:
        sequences = [span.sequence for span in slices]
        first = request.first
        outputs = [
            _texts(tensors.FINISH_REASON, (_finish_reason(sequence) for sequence in sequences)),
            _texts(tensors.STOP_REASON, (sequence.stop_reason for sequence in sequences)),
            _integers(tensors.NUM_CACHED_TOKENS, [first.num_cached_tokens]),
            Output(tensors.USED_SEED, np.array([first.sampling.seed], np.uint64)),
            _integers(tensors.SEQUENCE_LENGTH, (span.num_ids for span in slices)),
            _integers(tensors.BATCH_INDEX, [0]),
        ]
        if request.output.num_output_tokens:
            outputs.append(_integers(tensors.NUM_OUTPUT_TOKENS, (sequence.num_output_tokens for sequence in sequences)))
        return outputs

    def _perf_metrics(self, request: Request, sequences: list[Sequence]) -> list[Output]:
        first = request.first
        num_reused = math.ceil(first.num_cached_tokens / self._block_size)
        ran = first.first_scheduled_at is not None
        num_blocks = math.ceil(first.num_tokens / self._block_size) if ran else 0

        def times(spec: TensorSpec, at: cabc.Callable[[Sequence], float | None]) -> Output:
            return Output(spec, np.array([self._nanoseconds(at(sequence)) for sequence in sequences], np.int64))

        drafts = [(sequence.num_accepted_tokens, sequence.num_draft_tokens) for sequence in sequences]
        rates = [accepted / drafted if drafted else 0.0 for accepted, drafted in drafts]
        return [
            Output(tensors.ARRIVAL_TIME, np.array([self._nanoseconds(first.arrived_at)], np.int64)),
            times(tensors.FIRST_SCHEDULED_TIME, lambda sequence: sequence.first_scheduled_at),
            times(tensors.FIRST_TOKEN_TIME, lambda sequence: sequence.first_token_at),
            times(tensors.LAST_TOKEN_TIME, lambda sequence: sequence.last_token_at),
            _integers(tensors.REUSED_BLOCKS, [num_reused]),
            _integers(tensors.NEW_BLOCKS, [num_blocks - num_reused]),
            _integers(tensors.TOTAL_BLOCKS, [num_blocks]),
            _integers(tensors.NUM_DRAFT_TOKENS, (drafted for _, drafted in drafts)),
            _integers(tensors.NUM_ACCEPTED_TOKENS, (accepted for accepted, _ in drafts)),
            Output(tensors.ACCEPTANCE_RATE, np.array(rates, np.float32)),
        ]

    def _nanoseconds(self, seconds: float | None) -> int:
        """Return nanoseconds since 1970; 0 for what never happened."""
        return 0 if seconds is None else self._epoch_ns + round(seconds * 1e9)


def _finish_reason(sequence: Sequence) -> str:
    assert sequence.finish_reason is not None
    return sequence.finish_reason.value


def _log_probs(slices: cabc.Sequence[ResponseSlice], num_top: int) -> list[Output]:
    rows = [span.sequence.log_probs[span.start : span.end] for span in slices]
    padded = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = [item.log_prob for item in row]
    outputs = [Output(tensors.OUTPUT_LOG_PROBS, padded)]
    if num_top:
        flat = [item for row in rows for item in row]
        outputs += _top_log_probs(tensors.TOP_LOG_PROBS, tensors.TOP_LOG_PROB_IDS, flat, num_top)
    return outputs


def _prompt_log_probs(sequence: Sequence) -> list[Output]:
    items, num_top = sequence.prompt_log_probs, sequence.sampling.num_top_log_probs
    values = np.array([0.0, *(item.log_prob for item in items)], np.float32)
    outputs = [Output(tensors.PROMPT_LOG_PROBS, values)]
    if num_top:
        outputs += _top_log_probs(tensors.PROMPT_TOP_LOG_PROBS, tensors.PROMPT_TOP_LOG_PROB_IDS, items, num_top)
    return outputs


def _top_log_probs(
    log_probs: TensorSpec, token_ids: TensorSpec, items: list[TokenLogProbs], num_top: int
) -> tuple[Output, Output]:
    shape = len(items), num_top
    return (
        Output(log_probs, np.array([item.top_log_probs for item in items], np.float32).reshape(shape)),
        Output(token_ids, np.array([item.top_ids for item in items], np.int32).reshape(shape)),
    )


def _integers(spec: TensorSpec, values: cabc.Iterable[int]) -> Output:
    return Output(spec, np.array(list(values), np.int32))


def _texts(spec: TensorSpec, texts: cabc.Iterable[str]) -> Output:
    return Output(spec, np.array([text.encode() for text in texts], np.object_))
