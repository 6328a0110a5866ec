"""The endpoint `/v1/completions`.

Owns the way from its fields to a plan, and from deltas to its answer. Never knows limits, servers or sockets.
"""

from __future__ import annotations

import time

from trident_ensemble.contract import tensors
from trident_gateway.api.body import planned
from trident_gateway.api.chat import affinity_of, new_id
from trident_gateway.api.choices import AnswerPlan
from trident_gateway.api.completion_chunks import (
    AnswerHead,
    CompletionPart,
    CompletionParts,
    CompletionStream,
    render_completion,
)
from trident_gateway.api.completion_request import (
    CompletionRequest,
    Prompt,
    check_completion,
    max_tokens_of,
    prompts_of,
)
from trident_gateway.api.context import ApiContext
from trident_gateway.api.generation import Generation, generating
from trident_gateway.api.generation_plan import GenerationPlan, PromptCall
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.api.response_format import guide_of
from trident_gateway.api.translate import ParamNames, Tensors, guide_tensors, sampling_tensors, timeout_s
from trident_gateway.callers import Caller
from trident_gateway.settings import GatewaySettings
from trident_gateway.tool_calls.guides import ToolPlan
from trident_gateway.upstream.served_model import ServedModel

_BYTES_PER_TOKEN = 4


class CompletionEndpoint:
    """The endpoint that continues prompts.

    Args:
        context: what endpoints work with.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def handle(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer one request."""
        context = self._context
        caller = await context.admit(request)
        fields = await context.read(request, out, CompletionRequest)
        check_completion(fields, context.settings.max_n)
        model = context.find(request, caller, fields.model, lambda: _affinity(prompts_of(fields)[0], fields, caller))

        def plan_for(model: ServedModel) -> GenerationPlan:
            return planned(lambda: plan_completion(fields, model, caller, context.settings))

        plan = plan_for(model)
        if fields.stream:
            out.expect_events()
        async with generating(context, request, out, caller, plan, plan_for=plan_for) as generation:
            if fields.stream:
                await _stream(generation, fields, generation.plan, out)
            else:
                await _answer(generation, fields, generation.plan, out)


async def _stream(generation: Generation, fields: CompletionRequest, plan: GenerationPlan, out: AnswerSink) -> None:
    include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
    stream = CompletionStream(_head(plan), include_usage=include_usage)
    parts = CompletionParts(fields.logprobs, plan.num_choices)
    while (deltas := await generation.read()) is not None:
        events = stream.render(parts.read(deltas, generation.prompt_scores))
        if events:
            await out.send_events(events)
    await generation.settle()
    await out.end_events(stream.end(generation.usage if include_usage else None))


async def _answer(generation: Generation, fields: CompletionRequest, plan: GenerationPlan, out: AnswerSink) -> None:
    parts = CompletionParts(fields.logprobs, plan.num_choices)
    found: list[CompletionPart] = []
    while (deltas := await generation.read()) is not None:
        found += parts.read(deltas, generation.prompt_scores)
    await generation.settle()
    num_answers = len(plan.prompts) * plan.num_choices
    await out.send_json(render_completion(_head(plan), found, num_answers, generation.usage))


def _head(plan: GenerationPlan) -> AnswerHead:
    return AnswerHead(new_id("cmpl-"), int(time.time()), plan.model.card.name)


def plan_completion(
    fields: CompletionRequest, model: ServedModel, caller: Caller, settings: GatewaySettings
) -> GenerationPlan:
    """Return the plan of a request.

    Raises:
        InvalidRequestError: its prompts or its guide cannot be; names the field.
    """
    prompts = prompts_of(fields)
    values = sampling_tensors(fields, caller, settings)
    values[tensors.MAX_TOKENS.name] = max_tokens_of(fields)
    guide = guide_of(fields)
    if guide is not None:
        values.update(guide_tensors(guide))
    if fields.echo:
        values[tensors.ECHO.name] = True
    scores_prompt = bool(fields.echo) and fields.logprobs is not None
    if fields.logprobs is not None:
        values.update(_score_tensors(fields.logprobs, of_prompt=scores_prompt))
    names = ParamNames("prompt", guide=guide.param if guide else "", top_log_probs="logprobs")
    calls = [_call(values, prompt, fields, caller, names) for prompt in prompts]
    return GenerationPlan(
        model,
        calls,
        AnswerPlan(model.card, ToolPlan()),
        fields.n or 1,
        max_tokens_of(fields),
        # The prompt's log probabilities, which go before everything else, come with the last response.
        bool(fields.stream) and not scores_prompt,
        timeout_s(fields, settings),
        bool(fields.echo),
    )


def _score_tensors(num_top: int, *, of_prompt: bool) -> Tensors:
    values: Tensors = {tensors.RETURN_LOG_PROBS.name: True, tensors.RETURN_TOKEN_BYTES.name: True}
    if num_top:
        values[tensors.NUM_TOP_LOG_PROBS.name] = num_top
    if of_prompt:
        values[tensors.RETURN_PROMPT_LOG_PROBS.name] = True
    return values


def _call(shared: Tensors, prompt: Prompt, fields: CompletionRequest, caller: Caller, names: ParamNames) -> PromptCall:
    values, affinity = dict(shared), _affinity(prompt, fields, caller)
    if isinstance(prompt, str):
        values[tensors.TEXT_INPUT.name] = prompt
        if fields.add_special_tokens is not None:
            values[tensors.ADD_SPECIAL_TOKENS.name] = fields.add_special_tokens
        return PromptCall(values, len(prompt.encode()), affinity, names)
    values[tensors.PROMPT_TOKEN_IDS.name] = list(prompt)
    return PromptCall(values, len(prompt) * _BYTES_PER_TOKEN, affinity, names)


def _affinity(prompt: Prompt, fields: CompletionRequest, caller: Caller) -> bytes:
    beginning = prompt if isinstance(prompt, str) else repr(prompt[:64])
    return affinity_of(caller, fields.prompt_cache_key, beginning)
