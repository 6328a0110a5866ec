"""The way from the fields of OpenAI's API to the ensemble's input tensors, and back from a refusal to the fields.

Owns this one mapping. Never sends anything, and never checks what the schema or the ensemble check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from trident_ensemble.contract import tensors
from trident_ensemble.contract.tensors import TensorSpec
from trident_gateway.api.response_format import Guide
from trident_gateway.api.sampling_fields import SamplingFields
from trident_gateway.callers import Caller
from trident_gateway.errors import InvalidRequestError
from trident_gateway.settings import GatewaySettings
from trident_gateway.tool_calls.guides import ToolPlan
from trident_gateway.upstream.refusals import UpstreamRefusalError

Tensors = dict[str, Any]

#: Fields that become a tensor as they are.
_SAME: tuple[tuple[str, TensorSpec], ...] = (
    ("temperature", tensors.TEMPERATURE), ("top_p", tensors.TOP_P), ("min_p", tensors.MIN_P),
    ("repetition_penalty", tensors.REPETITION_PENALTY), ("presence_penalty", tensors.PRESENCE_PENALTY),
    ("frequency_penalty", tensors.FREQUENCY_PENALTY), ("min_tokens", tensors.MIN_TOKENS),
    ("ignore_eos", tensors.IGNORE_EOS), ("include_stop_str_in_output", tensors.INCLUDE_STOP),
    ("skip_special_tokens", tensors.SKIP_SPECIAL_TOKENS), ("truncate_prompt_tokens", tensors.TRUNCATE_PROMPT_TOKENS),
)  # fmt: skip
#: Tensors whose fields have another name.
_FIELD_OF = {
    tensors.STOP_WORDS.name: "stop", tensors.NUM_RETURN_SEQUENCES.name: "n", tensors.TIMEOUT_MS.name: "timeout",
    tensors.TEXT_INPUT.name: "prompt", tensors.PROMPT_TOKEN_IDS.name: "prompt", tensors.INPUT_IDS.name: "prompt",
    tensors.RETURN_LOG_PROBS.name: "logprobs", tensors.RETURN_PROMPT_LOG_PROBS.name: "logprobs",
    tensors.NUM_TOP_LOG_PROBS.name: "top_logprobs",
}  # fmt: skip
#: What the gateway itself sends; an error about these is none of the client's.
_OWN = frozenset(
    spec.name
    for spec in (
        tensors.TENANT, tensors.CACHE_SALT, tensors.MARKER_IDS, tensors.RETURN_TOKEN_BYTES, tensors.STREAM,
        tensors.STOP, tensors.RETURN_PERF_METRICS,
    )
)  # fmt: skip
#: The bias that bans a token.
_BAN = -100
_GUIDES = frozenset({tensors.GUIDE.name, tensors.GUIDE_TYPE.name})


@dataclass(frozen=True)
class ParamNames:
    """The names that one request has for what the ensemble may refuse.

    Args:
        prompt: where the prompt stands.
        max_tokens: the field that bounds the answer.
        guide: the field that asked for a guide.
        top_log_probs: the field that asked for the likeliest tokens.
        plan: knows which tool's schema a refusal of the guide is about.
    """

    prompt: str
    max_tokens: str = "max_tokens"
    guide: str = "response_format"
    top_log_probs: str = "top_logprobs"
    plan: ToolPlan = field(default_factory=ToolPlan)


def sampling_tensors(fields: SamplingFields, caller: Caller, settings: GatewaySettings) -> Tensors:
    """Return what a request says of how text is generated, but for its length and its guide."""
    values: Tensors = {}
    for name, spec in _SAME:
        value = getattr(fields, name)
        if value is not None:
            values[spec.name] = value
    if fields.top_k is not None:
        values[tensors.TOP_K.name] = max(fields.top_k, 0)
    if fields.seed is not None:
        values[tensors.SEED.name] = fields.seed % 2**64
    if fields.n is not None and fields.n > 1:
        values[tensors.NUM_RETURN_SEQUENCES.name] = fields.n
    if fields.stop:
        values[tensors.STOP_WORDS.name] = [fields.stop] if isinstance(fields.stop, str) else fields.stop
    if fields.stop_token_ids:
        values[tensors.STOP_TOKEN_IDS.name] = fields.stop_token_ids
    if fields.bad_words:
        values[tensors.BAD_WORDS.name] = fields.bad_words
    if fields.logit_bias:
        values[tensors.LOGIT_BIAS.name] = msgspec.json.encode(fields.logit_bias).decode()
    priority = caller.priority_for(fields.priority)
    if priority:
        values[tensors.PRIORITY.name] = priority
    if caller.tenant and not settings.share_prefix_cache:
        values[tensors.CACHE_SALT.name] = caller.tenant
    values[tensors.TIMEOUT_MS.name] = math.ceil(timeout_s(fields, settings) * 1000)
    return values


def timeout_s(fields: SamplingFields, settings: GatewaySettings) -> float:
    """Return the seconds that a request may take."""
    return settings.request_timeout_s if fields.timeout is None else fields.timeout


def guide_tensors(guide: Guide) -> Tensors:
    """Return the tensors of a guide."""
    return {tensors.GUIDE_TYPE.name: guide.kind, tensors.GUIDE.name: guide.text}


def plan_tensors(plan: ToolPlan, values: Tensors) -> None:
    """Add what a plan of tool calls and reasoning asks for.

    Args:
        plan: the plan.
        values: the tensors so far; bans are added to the client's own biases.
    """
    if plan.guide_type is not None:
        values[tensors.GUIDE_TYPE.name] = plan.guide_type
        values[tensors.GUIDE.name] = plan.guide
    if plan.marker_ids:
        values[tensors.MARKER_IDS.name] = list(plan.marker_ids)
    if plan.banned_ids:
        biases = json.loads(values.get(tensors.LOGIT_BIAS.name, "{}"))
        biases.update({str(token_id): _BAN for token_id in plan.banned_ids})
        values[tensors.LOGIT_BIAS.name] = json.dumps(biases)


def in_client_terms(error: BaseException, names: ParamNames) -> BaseException:
    """Return an error of the ensemble as an error about the client's own fields; any other error as it is."""
    if not isinstance(error, UpstreamRefusalError):
        return error
    wire = error.wire
    path = ""
    text = wire.text
    if wire.field == tensors.MESSAGES.name and text.startswith("["):
        path, _, text = text.partition(" ")
        path = path.rstrip(":,")
    if wire.reason == "context_length":
        param, code = names.prompt, "context_length_exceeded"
    elif wire.field in _GUIDES:
        param = names.plan.param_of(text) or names.guide
        if param != names.guide:
            text = text.partition(":")[2].strip()
        code = "invalid_json_schema" if wire.reason == "invalid_guide" else "invalid_value"
    else:
        param, code = _param_of(wire.field, names), "invalid_value"
    # Where prompt and length do not fit together, the text is about the one, and OpenAI's clients expect the other.
    subject = _param_of(wire.field, names) if wire.reason == "context_length" else f"{param}{path}"
    message = f"Invalid value for '{subject}': {text}" if subject else f"Invalid value: {text}"
    return InvalidRequestError(message, code=code, param=f"{param}{path}" or None)


def _param_of(tensor: str, names: ParamNames) -> str:
    own: Mapping[str, str] = {
        tensors.TEXT_INPUT.name: names.prompt, tensors.PROMPT_TOKEN_IDS.name: names.prompt,
        tensors.INPUT_IDS.name: names.prompt, tensors.MESSAGES.name: names.prompt,
        tensors.MAX_TOKENS.name: names.max_tokens, tensors.NUM_TOP_LOG_PROBS.name: names.top_log_probs,
    }  # fmt: skip
    return "" if tensor in _OWN else own.get(tensor) or _FIELD_OF.get(tensor, tensor)
