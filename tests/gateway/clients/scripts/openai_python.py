"""Conversations through the official client for Python."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Literal

import openai  # type: ignore[import-not-found]
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.gateway.clients.scripts.cases import (
    OTHER_TOOL,
    PERSON,
    PLAIN,
    TOOL,
    WEATHER,
    Gateway,
    case,
    outcome_of_error,
    run,
)


class Person(BaseModel):
    """What is asked for as JSON."""

    name: Literal["Ada", "Eve"]
    age: int


def client_of(gateway: Gateway, key: str = "", **options: Any) -> OpenAI:
    """Return a client that asks once."""
    return OpenAI(base_url=gateway.base, api_key=key or gateway.key, max_retries=0, timeout=60, **options)


def chat(gateway: Gateway, **fields: Any) -> Any:
    """Ask, by default for few words."""
    asked = {"model": gateway.model, "messages": PLAIN, "max_completion_tokens": 24, "seed": 7, **fields}
    return client_of(gateway).chat.completions.create(**asked)


def joined(chunks: Iterable[Any]) -> dict[str, Any]:
    """Put a stream together again."""
    found: dict[str, Any] = {
        "text": {},
        "finish": {},
        "roles": {},
        "calls": {},
        "usage": None,
        "logprobs": 0,
        "count": 0,
    }
    for chunk in chunks:
        found["count"] += 1
        if chunk.usage:
            found["usage"] = chunk.usage.model_dump()
        for choice in chunk.choices:
            index, delta = choice.index, choice.delta
            if delta.role:
                found["roles"][index] = delta.role
            found["text"][index] = found["text"].get(index, "") + (delta.content or "")
            found["logprobs"] += len(choice.logprobs.content or []) if choice.logprobs else 0
            for call in delta.tool_calls or []:
                one = found["calls"].setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                one["id"] += call.id or ""
                one["name"] += call.function.name or ""
                one["arguments"] += call.function.arguments or ""
            if choice.finish_reason:
                found["finish"][index] = choice.finish_reason
    return found


def told(answer: Any) -> dict[str, Any]:
    """Return what a plain answer says."""
    return {
        "text": [choice.message.content for choice in answer.choices],
        "finish": [choice.finish_reason for choice in answer.choices],
        "calls": [
            [{"id": call.id, "name": call.function.name, "arguments": call.function.arguments} for call in made]
            for made in (choice.message.tool_calls or [] for choice in answer.choices)
        ],
        "usage": answer.usage.model_dump(),
    }


@case
def plain(gateway: Gateway) -> Any:
    return told(chat(gateway))


@case
def raw_headers(gateway: Gateway) -> Any:
    raw = client_of(gateway).chat.completions.with_raw_response.create(
        model=gateway.model, messages=PLAIN, max_completion_tokens=2, extra_headers={"x-request-id": "mine-1.a"}
    )
    return {**dict(raw.headers.items()), "parsed id": raw.parse().id}


@case
def streamed(gateway: Gateway) -> Any:
    return joined(chat(gateway, stream=True))


@case
def streamed_usage(gateway: Gateway) -> Any:
    return joined(chat(gateway, stream=True, stream_options={"include_usage": True}))


@case
def several(gateway: Gateway) -> Any:
    return told(chat(gateway, n=3, temperature=1.0))


@case
def several_streamed(gateway: Gateway) -> Any:
    return joined(chat(gateway, n=3, temperature=1.0, stream=True))


@case
def stop(gateway: Gateway) -> Any:
    whole = told(chat(gateway))["text"][0]
    word = whole.split()[2]
    return {**told(chat(gateway, stop=[word, "never said"])), "whole": whole, "word": word}


@case
def logprobs(gateway: Gateway) -> Any:
    answer = chat(gateway, logprobs=True, top_logprobs=2)
    return {**told(answer), "logprobs": [entry.model_dump() for entry in answer.choices[0].logprobs.content]}


@case
def logprobs_streamed(gateway: Gateway) -> Any:
    return joined(chat(gateway, logprobs=True, stream=True, stream_options={"include_usage": True}))


@case
def json_object(gateway: Gateway) -> Any:
    return told(chat(gateway, response_format={"type": "json_object"}, max_completion_tokens=400))


@case
def json_schema(gateway: Gateway) -> Any:
    schema = {"name": "person", "schema": PERSON, "strict": True}
    return told(
        chat(
            gateway,
            response_format={"type": "json_schema", "json_schema": schema},
            max_completion_tokens=400,
        )
    )


@case
def parsed(gateway: Gateway) -> Any:
    answer = client_of(gateway).chat.completions.parse(
        model=gateway.model, messages=PLAIN, response_format=Person, max_completion_tokens=400
    )
    person = answer.choices[0].message.parsed
    return None if person is None else person.model_dump()


@case
def parsed_stream(gateway: Gateway) -> Any:
    with client_of(gateway).chat.completions.stream(
        model=gateway.model, messages=PLAIN, response_format=Person, max_completion_tokens=400
    ) as stream:
        kinds = [event.type for event in stream]
        person = stream.get_final_completion().choices[0].message.parsed
    return {"kinds": sorted(set(kinds)), "person": None if person is None else person.model_dump()}


def tools(gateway: Gateway, choice: Any, **fields: Any) -> Any:
    """Ask for the weather with two tools."""
    messages = WEATHER
    return chat(
        gateway, messages=messages, tools=[TOOL, OTHER_TOOL], tool_choice=choice, max_completion_tokens=400, **fields
    )


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@case
def tools_auto(gateway: Gateway) -> Any:
    return told(tools(gateway, "auto"))


@case
def tools_required(gateway: Gateway) -> Any:
    return told(tools(gateway, "required", parallel_tool_calls=False))


@case
def tools_named(gateway: Gateway) -> Any:
    return told(tools(gateway, NAMED))


@case
def tools_none(gateway: Gateway) -> Any:
    return told(tools(gateway, "none"))


@case
def tools_auto_streamed(gateway: Gateway) -> Any:
    return joined(tools(gateway, "auto", stream=True))


@case
def tools_required_streamed(gateway: Gateway) -> Any:
    return joined(tools(gateway, "required", parallel_tool_calls=False, stream=True))


@case
def tools_named_streamed(gateway: Gateway) -> Any:
    return joined(tools(gateway, NAMED, stream=True))


@case
def tools_helper_stream(gateway: Gateway) -> Any:
    """The client's own joining of a stream, which is strict about the order of events."""
    with client_of(gateway).chat.completions.stream(
        model=gateway.model, messages=WEATHER, tools=[TOOL], tool_choice="required", parallel_tool_calls=False,
        max_completion_tokens=400,
    ) as stream:  # fmt: skip
        kinds = [event.type for event in stream]
        return {"kinds": sorted(set(kinds)), **told_final(stream.get_final_completion())}


def told_final(answer: Any) -> dict[str, Any]:
    """Return what the client has joined."""
    choice = answer.choices[0]
    calls = [call.function.model_dump() for call in choice.message.tool_calls or []]
    return {"finish": choice.finish_reason, "calls": calls}


@case
def tool_conversation(gateway: Gateway) -> Any:
    """The second turn: the answer of a tool goes back to the model as the client has put it together."""
    first = tools(gateway, NAMED).choices[0].message
    answer = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"degrees": 31}'}
    messages = [*WEATHER, first.model_dump(exclude_none=True), answer]
    return told(chat(gateway, messages=messages, tools=[TOOL], tool_choice="none"))


@case
def completions(gateway: Gateway) -> Any:
    answer = client_of(gateway).completions.create(model=gateway.model, prompt="The ferry", max_tokens=8, seed=7)
    return {
        "text": answer.choices[0].text,
        "finish": answer.choices[0].finish_reason,
        "usage": answer.usage.model_dump(),
    }


@case
def completions_several(gateway: Gateway) -> Any:
    answer = client_of(gateway).completions.create(
        model=gateway.model, prompt=["The ferry", "The sea"], n=2, max_tokens=4, temperature=1.0
    )
    return {"indexes": [choice.index for choice in answer.choices], "usage": answer.usage.model_dump()}


@case
def completions_streamed(gateway: Gateway) -> Any:
    chunks = list(
        client_of(gateway).completions.create(
            model=gateway.model, prompt="The ferry", max_tokens=8, seed=7, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    return {
        "text": "".join(choice.text for chunk in chunks for choice in chunk.choices),
        "usage": chunks[-1].usage.model_dump(),
        "finish": [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason],
    }


@case
def completions_echo(gateway: Gateway) -> Any:
    answer = client_of(gateway).completions.create(
        model=gateway.model, prompt="The ferry", max_tokens=4, echo=True, logprobs=2, temperature=0
    )
    scores = answer.choices[0].logprobs
    return {"text": answer.choices[0].text, "logprobs": scores.model_dump(), "usage": answer.usage.model_dump()}


@case
def completions_scored(gateway: Gateway) -> Any:
    """What evaluation harnesses ask: nothing but the prompt's log probabilities."""
    answer = client_of(gateway).completions.create(
        model=gateway.model, prompt="The ferry", max_tokens=0, echo=True, logprobs=1
    )
    return {
        "text": answer.choices[0].text,
        "tokens": answer.choices[0].logprobs.tokens,
        "usage": answer.usage.model_dump(),
    }


@case
def completions_token_ids(gateway: Gateway) -> Any:
    answer = client_of(gateway).completions.create(model=gateway.model, prompt=[11, 12, 13], max_tokens=4)
    return {"usage": answer.usage.model_dump()}


@case
def responses(gateway: Gateway) -> Any:
    answer = client_of(gateway).responses.create(
        model=gateway.model,
        input="Tell me about the ferry.",
        instructions="Be short.",
        max_output_tokens=24,
        store=False,
    )
    return {"text": answer.output_text, "status": answer.status, "usage": answer.usage.model_dump()}


@case
def responses_streamed(gateway: Gateway) -> Any:
    events = list(
        client_of(gateway).responses.create(
            model=gateway.model, input="Tell me about the ferry.", max_output_tokens=24, store=False, stream=True
        )
    )
    return {
        "text": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
        "kinds": [event.type for event in events],
        "final": events[-1].response.output_text,
    }


def flat(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as the Responses API has it."""
    return {"type": "function", "strict": True, **tool["function"]}


@case
def responses_tools(gateway: Gateway) -> Any:
    answer = client_of(gateway).responses.create(
        model=gateway.model, input="What is the weather in Athens?", tools=[flat(TOOL)], tool_choice="required",
        parallel_tool_calls=False, max_output_tokens=400, store=False,
    )  # fmt: skip
    return [item.model_dump() for item in answer.output]


@case
def responses_tools_streamed(gateway: Gateway) -> Any:
    events = list(
        client_of(gateway).responses.create(
            model=gateway.model, input="What is the weather in Athens?", tools=[flat(TOOL)], tool_choice="required",
            parallel_tool_calls=False, max_output_tokens=400, store=False, stream=True,
        )
    )  # fmt: skip
    return {
        "arguments": "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta"),
        "done": [e.arguments for e in events if e.type == "response.function_call_arguments.done"],
        "kinds": [event.type for event in events],
    }


@case
def responses_parsed(gateway: Gateway) -> Any:
    answer = client_of(gateway).responses.parse(
        model=gateway.model, input="Somebody.", text_format=Person, max_output_tokens=400, store=False
    )
    return None if answer.output_parsed is None else answer.output_parsed.model_dump()


@case
def models(gateway: Gateway) -> Any:
    client = client_of(gateway)
    listed = [model.id for model in client.models.list()]
    return {"listed": listed, "one": client.models.retrieve(gateway.model).id}


@case
def embeddings(gateway: Gateway) -> Any:
    return refused(lambda: client_of(gateway).embeddings.create(model=gateway.model, input="The ferry"))


def refused(ask: Any) -> Any:
    """Return the error of what must fail."""
    try:
        ask()
    except openai.OpenAIError as error:
        return outcome_of_error(error)
    return {"error": None}


@case
def error_401(gateway: Gateway) -> Any:
    wrong = client_of(gateway, "sk-trident-nobody-" + "x" * 43)
    return refused(wrong.models.list)


@case
def error_404(gateway: Gateway) -> Any:
    return refused(lambda: chat(gateway, model="nobody"))


@case
def error_400(gateway: Gateway) -> Any:
    return refused(lambda: chat(gateway, temperature=9))


@case
def error_400_unknown(gateway: Gateway) -> Any:
    return refused(lambda: chat(gateway, extra_body={"colour": "red"}))


@case
def error_400_message(gateway: Gateway) -> Any:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    return refused(lambda: chat(gateway, messages=[*PLAIN, {"role": "user", "content": [image]}]))


@case
def error_400_context(gateway: Gateway) -> Any:
    return refused(lambda: chat(gateway, max_completion_tokens=100_000))


@case
def error_400_store(gateway: Gateway) -> Any:
    client = client_of(gateway)
    return refused(lambda: client.responses.create(model=gateway.model, input="a", previous_response_id="resp_1"))


@case
def error_429(gateway: Gateway) -> Any:
    """The key allows one request a minute."""
    client = client_of(gateway, gateway.spent_key)
    asked: dict[str, Any] = {"model": gateway.model, "messages": PLAIN, "max_completion_tokens": 2}
    refused(lambda: client.chat.completions.create(**asked))
    try:
        client.chat.completions.create(**asked)
    except openai.RateLimitError as error:
        return {**outcome_of_error(error), "retry-after": error.response.headers.get("retry-after")}
    return {"error": None}


@case
def hang_up(gateway: Gateway) -> Any:
    stream = chat(gateway, stream=True, max_completion_tokens=200, extra_body={"ignore_eos": True})
    first = next(iter(stream))
    stream.close()
    return first.choices[0].delta.role


@case
def asynchronous(gateway: Gateway) -> Any:
    async def text_of(stream: Any) -> str:
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=gateway.base, api_key=gateway.key, max_retries=0, timeout=60) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=gateway.model, messages=PLAIN, max_completion_tokens=24, seed=7, stream=True
                    )
                    for _ in range(8)
                )
            )
            return [await text_of(answer) for answer in answers]

    return asyncio.run(ask())


@case
def arguments_are_json(gateway: Gateway) -> Any:
    return json.loads(tools(gateway, NAMED).choices[0].message.tool_calls[0].function.arguments)


if __name__ == "__main__":
    run()
