"""The endpoint `/v1/responses`.

Owns the way from its fields to a plan, and from items to its answer. Never stores anything.
"""

from __future__ import annotations

import msgspec

from trident_ensemble.contract import tensors
from trident_gateway.api.body import invalid, planned
from trident_gateway.api.chat import DEFAULT_MAX_TOKENS, affinity_of, holds_calls
from trident_gateway.api.choices import AnswerPlan
from trident_gateway.api.context import ApiContext
from trident_gateway.api.generation import Generation, generating
from trident_gateway.api.generation_plan import GenerationPlan, PromptCall
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.api.messages import render_messages
from trident_gateway.api.response_format import Guide, JsonObjectFormat, schema_guide
from trident_gateway.api.responses.input_items import messages_of
from trident_gateway.api.responses.request import (
    LOGPROBS,
    ResponsesRequest,
    SchemaFormat,
    check_responses,
    choice_of,
    sampling_of,
    tools_of,
)
from trident_gateway.api.responses.running_response import RunningResponse, status_of
from trident_gateway.api.translate import ParamNames, Tensors, plan_tensors, sampling_tensors
from trident_gateway.callers import Caller
from trident_gateway.settings import GatewaySettings
from trident_gateway.tool_calls.guides import ToolPlan, plan_guide, plan_tools
from trident_gateway.tool_calls.tools import Choice
from trident_gateway.upstream.served_model import ServedModel

_TOOL_PARAM = "tools[{}]"


class ResponsesEndpoint:
    """The endpoint that answers inputs.

    Args:
        context: what endpoints work with.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def handle(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer one request."""
        context = self._context
        caller = await context.admit(request)
        fields = await context.read(request, out, ResponsesRequest)
        check_responses(fields)
        model = context.find(request, caller, fields.model, lambda: planned(lambda: _affinity(fields, caller)))

        def plan_for(model: ServedModel) -> GenerationPlan:
            return planned(lambda: plan_response(fields, model, caller, context.settings))

        plan = plan_for(model)
        response = planned(lambda: RunningResponse(fields, model.card.name))
        if plan.is_stream:
            out.expect_events(response.fail)
        async with generating(context, request, out, caller, plan, plan_for=plan_for) as generation:
            response.model = generation.plan.model.card.name
            await _answer(generation, response, out, is_stream=plan.is_stream)


async def _answer(generation: Generation, response: RunningResponse, out: AnswerSink, *, is_stream: bool) -> None:
    is_begun = False
    reason = ""
    while (deltas := await generation.read()) is not None:
        events = b"" if is_begun else response.begin()
        is_begun = True
        for delta in deltas:
            events += response.render(response.items.read(delta))
            reason = delta.finish_reason
        if is_stream and events:
            await out.send_events(events)
    await generation.settle()
    if is_stream:
        await out.end_events(response.end(reason, generation.usage))
    else:
        await out.send_json(msgspec.json.encode(response.body(status_of(reason), generation.usage)))


def plan_response(
    fields: ResponsesRequest, model: ServedModel, caller: Caller, settings: GatewaySettings
) -> GenerationPlan:
    """Return the plan of a response.

    Raises:
        InvalidRequestError: the model cannot do what is asked; names the field.
    """
    card = model.card
    if not card.takes_messages:
        raise invalid("input", f"the model `{card.name}` has no chat template; use /v1/completions.")
    sampling = sampling_of(fields)
    values = sampling_tensors(sampling, caller, settings)
    messages = render_messages(messages_of(fields.instructions, fields.input))
    values[tensors.MESSAGES.name] = messages
    if fields.max_output_tokens is not None:
        values[tensors.MAX_TOKENS.name] = fields.max_output_tokens
    if fields.tools:
        values[tensors.TOOLS.name] = _render_tools(fields)
    if LOGPROBS in (fields.include or ()):
        values[tensors.RETURN_LOG_PROBS.name] = values[tensors.RETURN_TOKEN_BYTES.name] = True
        if fields.top_logprobs:
            values[tensors.NUM_TOP_LOG_PROBS.name] = fields.top_logprobs
    guide_param, tool_plan = _plan_tools(fields, model, settings)
    if tool_plan.parses and LOGPROBS in (fields.include or ()):
        raise invalid("include", "log probabilities go with plain text alone here; /v1/chat/completions has them all.")
    plan_tensors(tool_plan, values)
    names = ParamNames("input", "max_output_tokens", guide_param, plan=tool_plan)
    affinity = _affinity(fields, caller)
    return GenerationPlan(
        model,
        [PromptCall(values, len(messages.encode()) + len(values.get(tensors.TOOLS.name, "")), affinity, names)],
        AnswerPlan(card, tool_plan),
        1,
        min(fields.max_output_tokens or DEFAULT_MAX_TOKENS, card.max_seq_len),
        bool(fields.stream),
        settings.request_timeout_s,
    )


def _affinity(fields: ResponsesRequest, caller: Caller) -> bytes:
    """Return what all turns of a conversation have in common: its first message, and the instructions before it."""
    beginning = messages_of(fields.instructions, fields.input)[: 1 if fields.instructions is None else 2]
    return affinity_of(caller, fields.prompt_cache_key, render_messages(beginning))


def _plan_tools(fields: ResponsesRequest, model: ServedModel, settings: GatewaySettings) -> tuple[str, ToolPlan]:
    tools, choice = tools_of(fields), choice_of(fields)
    guide = _guide(fields)
    if guide is None:
        parallel = fields.parallel_tool_calls is not False
        guided = any(tool.strict for tool in fields.tools or ()) or holds_calls(choice, settings)
        plan = plan_tools(model.card, tools, choice, parallel=parallel, guided=guided, param=_TOOL_PARAM)
        return "tools", plan
    if tools and choice.choice is not Choice.NONE:
        raise invalid(
            guide.param, "cannot be given together with tools that may be called; send 'tool_choice': 'none'."
        )
    return guide.param, plan_guide(model.card, guide.kind, guide.text)


def _guide(fields: ResponsesRequest) -> Guide | None:
    wanted = fields.text.format if fields.text else None
    if isinstance(wanted, JsonObjectFormat):
        return schema_guide(None, "text.format")
    return schema_guide(wanted.schema, "text.format") if isinstance(wanted, SchemaFormat) else None


def _render_tools(fields: ResponsesRequest) -> str:
    functions: list[Tensors] = [
        {
            key: value
            for key, value in (("name", tool.name), ("description", tool.description), ("parameters", tool.parameters))
            if value is not None
        }
        for tool in fields.tools or ()
    ]
    return msgspec.json.encode([{"type": "function", "function": function} for function in functions]).decode()
