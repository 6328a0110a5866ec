"""The endpoint `/v1/chat/completions`.

Owns the way from its fields to a plan, and from deltas to its answer. Never knows limits, servers or sockets.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import msgspec

from trident_ensemble.contract import tensors
from trident_gateway.api.body import invalid, planned
from trident_gateway.api.chat_answer import join, render_chat
from trident_gateway.api.chat_request import ChatRequest, ToolDefinition, check_chat, choice_of, tools_of
from trident_gateway.api.chat_stream import ChatStream
from trident_gateway.api.choices import AnswerPlan, Delta
from trident_gateway.api.context import ApiContext
from trident_gateway.api.generation import Generation, generating
from trident_gateway.api.generation_plan import GenerationPlan, PromptCall
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.api.messages import render_messages
from trident_gateway.api.response_format import guide_of
from trident_gateway.api.translate import ParamNames, Tensors, plan_tensors, sampling_tensors, timeout_s
from trident_gateway.callers import Caller
from trident_gateway.settings import GatewaySettings
from trident_gateway.tool_calls.guides import ToolPlan, plan_guide, plan_tools, turns_reasoning_off
from trident_gateway.tool_calls.tools import Choice, ToolChoice
from trident_gateway.upstream.served_model import ServedModel

#: Tokens of an answer that a request without a bound is taken for; the core's own default.
DEFAULT_MAX_TOKENS = 4096
#: Bytes of the first message that decide which server a conversation prefers.
_MAX_AFFINITY_BYTES = 1024


class ChatEndpoint:
    """The endpoint that answers chats.

    Args:
        context: what endpoints work with.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def handle(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer one request."""
        context = self._context
        caller = await context.admit(request)
        fields = await context.read(request, out, ChatRequest)
        check_chat(fields, context.settings.max_n)
        model = context.find(request, caller, fields.model, lambda: planned(lambda: _affinity(fields, caller)))

        def plan_for(model: ServedModel) -> GenerationPlan:
            return planned(lambda: plan_chat(fields, model, caller, context.settings))

        plan = plan_for(model)
        if plan.is_stream:
            out.expect_events()
        async with generating(context, request, out, caller, plan, plan_for=plan_for) as generation:
            if plan.is_stream:
                await _stream(generation, fields, generation.plan, out)
            else:
                await _answer(generation, fields, generation.plan, out)


async def _stream(generation: Generation, fields: ChatRequest, plan: GenerationPlan, out: AnswerSink) -> None:
    include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
    stream = ChatStream(new_id("chatcmpl-"), int(time.time()), plan.model.card.name, include_usage=include_usage)
    while (deltas := await generation.read()) is not None:
        events = stream.render(deltas)
        if events:
            await out.send_events(events)
    await generation.settle()
    await out.end_events(stream.end(generation.usage if include_usage else None))


async def _answer(generation: Generation, fields: ChatRequest, plan: GenerationPlan, out: AnswerSink) -> None:
    deltas: list[Delta] = []
    while (more := await generation.read()) is not None:
        deltas += more
    await generation.settle()
    body = render_chat(
        join(deltas, plan.num_choices),
        generation.usage,
        answer_id=new_id("chatcmpl-"),
        created=int(time.time()),
        model=plan.model.card.name,
        with_logprobs=bool(fields.logprobs),
    )
    await out.send_json(body)


def plan_chat(fields: ChatRequest, model: ServedModel, caller: Caller, settings: GatewaySettings) -> GenerationPlan:
    """Return the plan of a chat.

    Raises:
        InvalidRequestError: the model cannot do what is asked; names the field.
    """
    card = model.card
    if not card.takes_messages:
        raise invalid("messages", f"the model `{card.name}` has no chat template; use /v1/completions.")
    values = sampling_tensors(fields, caller, settings)
    messages = render_messages(fields.messages)
    values[tensors.MESSAGES.name] = messages
    _put_template_fields(fields, values)
    max_tokens = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    if max_tokens is not None:
        values[tensors.MAX_TOKENS.name] = max_tokens
    if fields.logprobs:
        values[tensors.RETURN_LOG_PROBS.name] = values[tensors.RETURN_TOKEN_BYTES.name] = True
        if fields.top_logprobs:
            values[tensors.NUM_TOP_LOG_PROBS.name] = fields.top_logprobs
    guide_param, tool_plan = _plan_tools(fields, model, settings)
    plan_tensors(tool_plan, values)
    names = ParamNames(
        "messages",
        "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens",
        guide_param,
        plan=tool_plan,
    )
    affinity = _affinity(fields, caller)
    return GenerationPlan(
        model,
        [PromptCall(values, len(messages.encode()) + len(values.get(tensors.TOOLS.name, "")), affinity, names)],
        AnswerPlan(card, tool_plan),
        fields.n or 1,
        min(max_tokens or DEFAULT_MAX_TOKENS, card.max_seq_len),
        bool(fields.stream),
        timeout_s(fields, settings),
    )


def _put_template_fields(fields: ChatRequest, values: Tensors) -> None:
    if fields.tools:
        values[tensors.TOOLS.name] = render_tools(fields.tools)
    if fields.chat_template_kwargs:
        values[tensors.CHAT_TEMPLATE_KWARGS.name] = msgspec.json.encode(fields.chat_template_kwargs).decode()
    if fields.add_generation_prompt is not None:
        values[tensors.ADD_GENERATION_PROMPT.name] = fields.add_generation_prompt
    if fields.continue_final_message is not None:
        values[tensors.CONTINUE_FINAL_MESSAGE.name] = fields.continue_final_message


def _plan_tools(fields: ChatRequest, model: ServedModel, settings: GatewaySettings) -> tuple[str, ToolPlan]:
    """Return the field that asked for a guide, and the plan of tool calls and reasoning."""
    tools, choice = tools_of(fields), choice_of(fields)
    in_prompt = (
        not fields.continue_final_message
        and fields.add_generation_prompt is not False
        and not turns_reasoning_off(fields.chat_template_kwargs or {})
    )
    guide = guide_of(fields, fields.response_format)
    if guide is None:
        parallel = fields.parallel_tool_calls is not False
        strict = any(tool.function.strict for tool in fields.tools or ())
        guided = strict or holds_calls(choice, settings)
        plan = plan_tools(model.card, tools, choice, parallel=parallel, in_prompt=in_prompt, guided=guided)
        return "tools", plan
    if tools and choice.choice is not Choice.NONE:
        raise invalid(
            guide.param, "cannot be given together with tools that may be called; send 'tool_choice': 'none'."
        )
    return guide.param, plan_guide(model.card, guide.kind, guide.text, in_prompt=in_prompt)


def holds_calls(choice: ToolChoice, settings: GatewaySettings) -> bool:
    """Return whether calls are held to the schemas of tools that do not ask for it."""
    return not settings.relax_tools or choice.choice is not Choice.AUTO


def render_tools(tools: Sequence[ToolDefinition]) -> str:
    """Return tools as the JSON that the chat template gets: without `strict`, which says nothing to a model."""
    return msgspec.json.encode(
        [
            {
                "type": "function",
                "function": {
                    key: value for key, value in msgspec.to_builtins(tool.function).items() if key != "strict"
                },
            }
            for tool in tools
        ]
    ).decode()


def _affinity(fields: ChatRequest, caller: Caller) -> bytes:
    return affinity_of(caller, fields.prompt_cache_key, render_messages(fields.messages[:1]))


def affinity_of(caller: Caller, cache_key: str | None, beginning: str) -> bytes:
    """Return what calls have in common that should meet at one server, where their prefix is cached."""
    parts = (caller.tenant, cache_key or "", beginning[:_MAX_AFFINITY_BYTES])
    return "\0".join(parts).encode(errors="backslashreplace")


def new_id(prefix: str) -> str:
    """Return a random id."""
    return prefix + secrets.token_hex(16)
