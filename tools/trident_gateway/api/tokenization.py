"""The endpoints `/tokenize` and `/detokenize`, as vLLM has them.

Owns their fields and their answers. Both ask the model's own server, which has the tokenizer. Never generates a token.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from trident_ensemble.contract import tensors
from trident_gateway.api.body import invalid, planned
from trident_gateway.api.chat import render_tools
from trident_gateway.api.chat_request import ToolDefinition
from trident_gateway.api.choices import AnswerPlan
from trident_gateway.api.context import ApiContext, note_model
from trident_gateway.api.generation import generating
from trident_gateway.api.generation_plan import GenerationPlan, PromptCall
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.api.messages import Messages, check_messages, render_messages
from trident_gateway.api.sampling_fields import ModelName, TokenId
from trident_gateway.api.translate import ParamNames, Tensors, in_client_terms
from trident_gateway.errors import ApiError, EngineFaultError, InvalidRequestError
from trident_gateway.tool_calls.answer_parser import ContentDelta
from trident_gateway.tool_calls.guides import ToolPlan
from trident_gateway.upstream.served_model import ReplanError, ServedModel


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A prompt or a conversation whose tokens are wanted."""

    model: ModelName
    prompt: str | None = None
    messages: Messages | None = None
    tools: list[ToolDefinition] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Tokens whose text is wanted."""

    model: ModelName
    tokens: Annotated[list[TokenId], Meta(min_length=1)]


class _Tokenized(Struct):
    input_ids: int | list[int]


class TokenizationEndpoints:
    """The endpoints that turn text into tokens and back.

    Args:
        context: what endpoints work with.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def tokenize(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer with the tokens of a text, or of a conversation."""
        context = self._context
        caller = await context.admit(request)
        fields = await context.read(request, out, TokenizeRequest)
        render = cache(lambda: _tokenize_body(fields))
        model = context.find(request, caller, fields.model, render)
        body = render()
        reservation = await context.limiter.reserve(caller, max(1, len(body) // 4), 0)
        try:
            out.add_headers(reservation.headers())
            model, answer = await self._ask(model, body)
            note_model(request, model)
        except ApiError as error:
            names = ParamNames("prompt" if fields.messages is None else "messages")
            raise in_client_terms(error, names) from None
        finally:
            await reservation.settle(0, 0)
        try:
            ids = msgspec.json.decode(answer, type=_Tokenized).input_ids
        except msgspec.MsgspecError:
            raise EngineFaultError from None
        tokens = ids if isinstance(ids, list) else [ids]
        shown = {"count": len(tokens), "max_model_len": model.card.max_seq_len, "tokens": tokens, "token_strs": None}
        await out.send_json(msgspec.json.encode(shown))

    async def _ask(self, model: ServedModel, body: bytes) -> tuple[ServedModel, bytes]:
        """Return preprocessing's answer, and the model whose preprocessing that is."""
        while True:
            try:
                return model, await self._context.router.call_json(model, f"{model.preprocessing}/generate", body)
            except ReplanError as error:
                model = error.model

    async def detokenize(self, request: HttpRequest, out: AnswerSink) -> None:
        """Answer with the text of tokens, special ones included."""
        context = self._context
        caller = await context.admit(request)
        fields = await context.read(request, out, DetokenizeRequest)
        model = context.find(request, caller, fields.model, lambda: repr(fields.tokens).encode())
        values: Tensors = {
            tensors.PROMPT_TOKEN_IDS.name: fields.tokens, tensors.ECHO.name: True, tensors.MAX_TOKENS.name: 0,
            tensors.SKIP_SPECIAL_TOKENS.name: False,
        }  # fmt: skip
        call = PromptCall(values, 4 * len(fields.tokens), b"", ParamNames("tokens"))
        timeout = context.settings.request_timeout_s

        def plan_for(model: ServedModel) -> GenerationPlan:
            answers = AnswerPlan(model.card, ToolPlan())
            return GenerationPlan(model, [call], answers, 1, 0, is_stream=False, timeout_s=timeout, echo=True)

        text = ""
        async with generating(context, request, out, caller, plan_for(model), plan_for=plan_for) as generation:
            while (deltas := await generation.read()) is not None:
                for delta in deltas:
                    text += "".join(event.text for event in delta.events if isinstance(event, ContentDelta))
            await generation.settle()
            await out.send_json(msgspec.json.encode({"prompt": text}))


def _tokenize_body(fields: TokenizeRequest) -> bytes:
    return msgspec.json.encode(planned(lambda: _tokenize_values(fields)))


def _tokenize_values(fields: TokenizeRequest) -> Tensors:
    """Return the input tensors of preprocessing.

    Raises:
        InvalidRequestError: there is not exactly one prompt, or a field does not go with it.
    """
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidRequestError("Send either 'prompt' or 'messages'.", param="prompt")
    # Room for one token, so that all that fits into the context is tokenized.
    values: Tensors = {tensors.MAX_TOKENS.name: 1}
    if fields.messages is None:
        for name in ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if getattr(fields, name) is not None:
                raise invalid(name, "needs 'messages'.")
        values[tensors.TEXT_INPUT.name] = fields.prompt
        if fields.add_special_tokens is not None:
            values[tensors.ADD_SPECIAL_TOKENS.name] = fields.add_special_tokens
        return values
    if fields.add_special_tokens:
        raise invalid("add_special_tokens", "must not be true with 'messages': the chat template writes them.")
    check_messages(fields.messages)
    values[tensors.MESSAGES.name] = render_messages(fields.messages)
    if fields.tools:
        values[tensors.TOOLS.name] = render_tools(fields.tools)
    if fields.chat_template_kwargs:
        values[tensors.CHAT_TEMPLATE_KWARGS.name] = msgspec.json.encode(fields.chat_template_kwargs).decode()
    for spec in (tensors.ADD_GENERATION_PROMPT, tensors.CONTINUE_FINAL_MESSAGE):
        value = getattr(fields, spec.name)
        if value is not None:
            values[spec.name] = value
    return values
