"""The options by which a request says how it is answered.

Owns the defaults of these options and which of them exclude each other. Pure. Never sends an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.requests.fields import RequestFields
from trident_ensemble.contract import tensors
from trident_ensemble.contract.chunk_header import MAX_MARKERS
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.settings import MAX_STREAM_INTERVAL_MS


@dataclass(frozen=True)
class OutputOptions:
    """The way in which the answers of a request are sent.

    Args:
        streaming: send tokens as they are generated.
        flow_control: postprocessing acknowledges each response.
        echo: the output begins with the prompt.
        skip_special_tokens: leave special tokens out of the text.
        perf_metrics: report times, cache blocks and draft tokens.
        num_input_tokens: report the length of the prompt.
        num_output_tokens: report the length of the output.
        pad_id: pads the ids of the shorter sequences in a response.
        stream_interval_ms: the least time between two responses of a stream, in milliseconds; None for the server's.
        marker_ids: tokens to leave out of the text, and to report where they stand in it.
        token_bytes: with log probabilities, the bytes of each of their tokens.
    """

    streaming: bool = False
    flow_control: bool = False
    echo: bool = False
    skip_special_tokens: bool = True
    perf_metrics: bool = False
    num_input_tokens: bool = True
    num_output_tokens: bool = True
    pad_id: int = 0
    stream_interval_ms: int | None = None
    marker_ids: tuple[int, ...] = ()
    token_bytes: bool = False


def parse_output_options(fields: RequestFields, vocab_size: int, *, has_log_probs: bool) -> OutputOptions:
    """Read how a request is to be answered.

    Args:
        fields: the fields of the request.
        vocab_size: every token id must be below it.
        has_log_probs: log probabilities of the output or of the prompt are wanted.

    Raises:
        RequestError: a field is out of bounds, two contradict each other, or one asks for an output that is not
            supported.
    """
    fields.only(tensors.RETURN_CONTEXT_LOGITS, False, "use return_prompt_log_probs and num_top_log_probs")
    fields.only(tensors.RETURN_GENERATION_LOGITS, False, "use return_log_probs and num_top_log_probs")
    streaming = fields.flag(tensors.STREAM, default=False)
    echo = _echo(fields, streaming=streaming)
    token_bytes = fields.flag(tensors.RETURN_TOKEN_BYTES, default=False)
    if token_bytes and not has_log_probs:
        wanted = f"{tensors.RETURN_LOG_PROBS.name} or {tensors.RETURN_PROMPT_LOG_PROBS.name}"
        raise RequestError(tensors.RETURN_TOKEN_BYTES.name, f"only goes with {wanted}")
    return OutputOptions(
        streaming=streaming,
        flow_control=fields.flag(tensors.FLOW_CONTROL, default=False),
        echo=echo,
        skip_special_tokens=fields.flag(tensors.SKIP_SPECIAL_TOKENS, default=True),
        marker_ids=_marker_ids(fields, vocab_size, echo=echo),
        token_bytes=token_bytes,
        perf_metrics=fields.flag(tensors.RETURN_PERF_METRICS, default=False),
        num_input_tokens=fields.flag(tensors.RETURN_NUM_INPUT_TOKENS, default=True),
        num_output_tokens=fields.flag(tensors.RETURN_NUM_OUTPUT_TOKENS, default=True),
        pad_id=fields.integer(tensors.PAD_ID, 0, 0, _MAX_ID),
        stream_interval_ms=_stream_interval_ms(fields),
    )


def _echo(fields: RequestFields, *, streaming: bool) -> bool:
    """Return whether the output begins with the prompt.

    `echo` asks for it in any case. `exclude_input_in_output: false` asks for it as in tensorrtllm_backend, whose
    streams never repeat the prompt because its clients put the pieces together themselves.
    """
    echo = fields.flag(tensors.ECHO, default=False)
    if tensors.EXCLUDE_INPUT not in fields:
        return echo
    excluded = fields.flag(tensors.EXCLUDE_INPUT, default=True)
    if tensors.ECHO in fields:
        if echo == excluded:
            problem = f"is the opposite of echo, but both are {str(echo).lower()}; send one of them"
            raise RequestError(tensors.EXCLUDE_INPUT.name, problem)
        return echo
    return not excluded and not streaming


def _marker_ids(fields: RequestFields, vocab_size: int, *, echo: bool) -> tuple[int, ...]:
    name, marker_ids = tensors.MARKER_IDS.name, tuple(dict.fromkeys(fields.integers(tensors.MARKER_IDS)))
    if len(marker_ids) > MAX_MARKERS:
        raise RequestError(name, f"{len(marker_ids)} are too many: at most {MAX_MARKERS}")
    if marker_ids and not 0 <= min(marker_ids) <= max(marker_ids) < vocab_size:
        raise RequestError(name, f"every id must be from 0 to {vocab_size - 1}")
    if marker_ids and echo:
        raise RequestError(name, "are looked for in the output alone; send no echo")
    return marker_ids


def _stream_interval_ms(fields: RequestFields) -> int | None:
    if tensors.STREAM_INTERVAL_MS not in fields:
        return None
    return fields.integer(tensors.STREAM_INTERVAL_MS, 0, 0, MAX_STREAM_INTERVAL_MS)


_MAX_ID = 2**31 - 1
