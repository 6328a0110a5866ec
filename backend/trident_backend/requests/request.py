"""The sequences of a request, made from its fields.

Owns the bounds of the prompt, of lengths and of scheduling, and puts together what the modules of each subject read.
Pure: knows no tensor type. Never compiles a grammar, because that takes long.
"""

from __future__ import annotations

import collections.abc as cabc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from trident_backend.engine.protocol import EngineSpec
from trident_backend.requests.fields import RequestFields
from trident_backend.requests.output_options import OutputOptions, parse_output_options
from trident_backend.requests.sampling_options import parse_min_tokens, parse_sampling
from trident_backend.requests.stop_options import StopOptions, parse_stop_options
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.stop_strings import StopStrings
from trident_ensemble.contract import tensors
from trident_ensemble.contract.client_input import MAX_GUIDE_BYTES
from trident_ensemble.contract.errors import ContextLengthError, InvalidGuideError, RequestError
from trident_ensemble.contract.manifest import Generation
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.text.special_tokens import SpecialTokens, TokenSpeller, named_tokens


class StopStringsFactory(Protocol):
    """Makes the stop strings of one sequence; the arguments are those of `StopStrings`."""

    def __call__(
        self,
        words: tuple[str, ...],
        *,
        echoed_ids: cabc.Sequence[int],
        min_tokens: int,
        include_stop: bool,
        skip_special_tokens: bool,
        markers: SpecialTokens,
    ) -> StopStrings:
        """Return the stop strings of an output that has not begun."""
        ...


@dataclass(frozen=True)
class RequestContext:
    """The limits against which requests are checked, and the defaults from which they are completed.

    Args:
        spec: the limits of the engine.
        defaults: the checkpoint's generation settings.
        stop_strings: makes the stop strings of a sequence.
        token_bytes: the bytes of each token.
        special: the tokenizer's special tokens.
        default_max_tokens: the most tokens of output for a request that leaves it to the server.
    """

    spec: EngineSpec
    defaults: Generation
    stop_strings: StopStringsFactory
    token_bytes: TokenSpeller
    special: SpecialTokens = field(default_factory=SpecialTokens)
    default_max_tokens: int = CoreSettings.default_max_tokens


@dataclass(frozen=True, eq=False)
class Request:
    """One request, checked and ready to be scheduled.

    Args:
        sequences: one for each answer; all but the first are siblings of the first.
        output: how the answers are sent.
        guide: type and text of the guide that is to be compiled, if there is one.
        request_id: the client's own name for the request.
    """

    sequences: tuple[Sequence, ...]
    output: OutputOptions
    guide: tuple[str, str] | None = None
    request_id: str = ""

    @property
    def first(self) -> Sequence:
        """The sequence whose prompt its siblings share."""
        return self.sequences[0]


def parse_size(values: Mapping[str, Any], spec: EngineSpec) -> tuple[int, str, int]:
    """Read what the admission queue needs, without reading the whole request.

    Returns:
        the number of prompt tokens, the tenant, and the number of answers.

    Raises:
        RequestError: names the field and the limit that it breaks.
    """
    fields = RequestFields(values)
    num_tokens = len(fields.integers(tensors.INPUT_IDS))
    num_sequences = fields.integer(tensors.NUM_RETURN_SEQUENCES, 1, 1, spec.max_num_seqs)
    return num_tokens, parse_tenant(values), num_sequences


def parse_request(
    sequence_ids: Iterator[int], values: Mapping[str, Any], context: RequestContext, now: float, request_id: str = ""
) -> Request:
    """Build the sequences of one request.

    Args:
        sequence_ids: yields the core's own numbers for the sequences.
        values: as `RequestFields` takes them; absent fields take their defaults.
        context: the engine's limits and the checkpoint's defaults.
        now: when the request arrived, in seconds of the core's clock.
        request_id: the client's own name for the request.

    Raises:
        RequestError: names the field and the limit that it breaks.
    """
    fields, spec = RequestFields(values), context.spec
    token_ids = _token_ids(fields, spec)
    max_tokens = _max_tokens(fields, len(token_ids), spec, context.default_max_tokens)
    min_tokens = parse_min_tokens(fields, context.defaults, max_tokens)
    sampling = parse_sampling(fields, context.defaults, spec.vocab_size, min_tokens)
    has_log_probs = sampling.log_probs or sampling.prompt_log_probs
    output = parse_output_options(fields, spec.vocab_size, has_log_probs=has_log_probs)
    markers = named_tokens(context.token_bytes, output.marker_ids)
    stop = parse_stop_options(fields, context.defaults, spec.vocab_size, context.special | markers)
    num_sequences = fields.integer(tensors.NUM_RETURN_SEQUENCES, 1, 1, spec.max_num_seqs)
    guide = _guide(fields)
    deadline = now + _timeout_seconds(fields)
    priority = fields.integer(tensors.PRIORITY, 0, -_MAX_PRIORITY, _MAX_PRIORITY)
    tenant, cache_salt = (fields.text(label, _MAX_LABEL_BYTES) for label in (tensors.TENANT, tensors.CACHE_SALT))
    # A prompt found in the cache is not computed, and so has no log probabilities.
    reuse_cache = fields.flag(tensors.REUSE_CACHE, default=True) and not sampling.prompt_log_probs

    stop_strings = _stop_strings(context, stop, output, token_ids, min_tokens, markers)

    def build(index: int, parent: Sequence | None) -> Sequence:
        own = sampling if parent is None else replace(sampling, index=index, prompt_log_probs=False)
        return Sequence(
            sequence_id=next(sequence_ids),
            token_ids=list(token_ids),
            num_prompt_tokens=len(token_ids),
            max_tokens=max_tokens,
            sampling=own,
            end_ids=stop.end_ids,
            arrived_at=now,
            deadline=deadline,
            priority=priority,
            tenant=tenant,
            cache_salt=cache_salt,
            reuse_cache=reuse_cache,
            parent=parent,
            stop_ids=stop.stop_ids,
            stop_id_words=stop.stop_id_words,
            stop_strings=stop_strings if parent is None or stop_strings is None else stop_strings.fork(),
            include_stop=stop.include_stop,
        )

    first = build(0, None)
    return Request((first, *(build(index, first) for index in range(1, num_sequences))), output, guide, request_id)


def parse_tenant(values: Mapping[str, Any]) -> str:
    """Read the tenant that a request belongs to; empty if it names none.

    Raises:
        RequestError: the name is too long, or is not valid UTF-8.
    """
    return RequestFields(values).text(tensors.TENANT, _MAX_LABEL_BYTES)


def parse_stop(values: Mapping[str, Any], request_id: str) -> tuple[str, str]:
    """Read which request is to be stopped; return its tenant and its id.

    Ids are chosen by clients, so a tenant can only reach its own requests.

    Raises:
        RequestError: there is no request id.
    """
    if not request_id:
        raise RequestError(tensors.STOP.name, "needs the request id of the request that is to be stopped")
    return parse_tenant(values), request_id


def _stop_strings(  # noqa: PLR0917
    context: RequestContext,
    stop: StopOptions,
    output: OutputOptions,
    token_ids: list[int],
    min_tokens: int,
    markers: SpecialTokens,
) -> StopStrings | None:
    if not stop.stop_words:
        return None
    return context.stop_strings(
        stop.stop_words,
        echoed_ids=token_ids if output.echo else (),
        min_tokens=min_tokens,
        include_stop=stop.include_stop,
        skip_special_tokens=output.skip_special_tokens,
        markers=markers,
    )


def _token_ids(fields: RequestFields, spec: EngineSpec) -> list[int]:
    name = fields.name(tensors.INPUT_IDS)
    token_ids = fields.integers(tensors.INPUT_IDS)
    if not token_ids:
        raise RequestError(name, "must hold at least one token")
    if len(token_ids) >= spec.max_seq_len:
        raise ContextLengthError(
            name, f"a prompt of {len(token_ids)} tokens is too long: the engine's max_seq_len is {spec.max_seq_len}"
        )
    if min(token_ids) < 0 or max(token_ids) >= spec.vocab_size:
        raise RequestError(name, f"every id must be from 0 to {spec.vocab_size - 1}")
    fields.only(tensors.INPUT_LENGTHS, len(token_ids), f"{name} has that many ids")
    return token_ids


def _max_tokens(fields: RequestFields, num_prompt_tokens: int, spec: EngineSpec, default: int) -> int:
    name = fields.name(tensors.MAX_TOKENS)
    max_tokens = fields.integer(tensors.MAX_TOKENS, _WHAT_IS_LEFT, _WHAT_IS_LEFT)
    if max_tokens == _WHAT_IS_LEFT:
        return min(spec.max_seq_len - num_prompt_tokens, default)
    if num_prompt_tokens + max_tokens > spec.max_seq_len:
        raise ContextLengthError(
            name,
            f"{max_tokens} after a prompt of {num_prompt_tokens} tokens is too large: the engine holds "
            f"{spec.max_seq_len} tokens a sequence, so at most {spec.max_seq_len - num_prompt_tokens} here",
        )
    return max_tokens


def _timeout_seconds(fields: RequestFields) -> float:
    if tensors.TIMEOUT_MS not in fields:
        return math.inf
    return fields.integer(tensors.TIMEOUT_MS, 0, 1) / 1000


def _guide(fields: RequestFields) -> tuple[str, str] | None:
    guide_type = fields.text(tensors.GUIDE_TYPE, _MAX_LABEL_BYTES)
    try:
        guide = fields.text(tensors.GUIDE, MAX_GUIDE_BYTES)
    except RequestError as error:
        raise InvalidGuideError(error.field, error.problem) from None
    if guide and not guide_type:
        raise RequestError(tensors.GUIDE_TYPE.name, f"is missing; {tensors.GUIDE.name} goes with it")
    if guide_type and tensors.GUIDE not in fields and guide_type != _TYPE_WITHOUT_GUIDE:
        raise RequestError(tensors.GUIDE.name, f"is missing; {tensors.GUIDE_TYPE.name} {guide_type} goes with it")
    return (guide_type, guide) if guide_type else None


#: Bounds how long a request of the lowest priority may wait until aging has lifted it above the highest.
_MAX_PRIORITY = 100
_MAX_LABEL_BYTES = 256

#: The `max_tokens` that asks for as many as the context leaves, as does its absence.
_WHAT_IS_LEFT = -1
#: The type of guide that needs no text: any JSON will do.
_TYPE_WITHOUT_GUIDE = "json"
