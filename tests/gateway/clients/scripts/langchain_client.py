"""Conversations through langchain-openai."""

from __future__ import annotations

from typing import Any, Literal

from langchain_openai import ChatOpenAI, OpenAI  # type: ignore[import-not-found]
from pydantic import BaseModel

from tests.gateway.clients.scripts.cases import Gateway, case, outcome_of_error, run


class Person(BaseModel):
    """Somebody."""

    name: Literal["Ada", "Eve"]
    age: int


class GetWeather(BaseModel):
    """The weather at a place."""

    place: Literal["Athens", "Oslo"]
    days: int


def chat(gateway: Gateway, **options: Any) -> ChatOpenAI:
    """Return a chat model."""
    return ChatOpenAI(
        base_url=gateway.base, api_key=gateway.key, max_retries=0, timeout=60,
        **{"model": gateway.model, "max_completion_tokens": 400, "seed": 7, **options},
    )  # fmt: skip


@case
def plain(gateway: Gateway) -> Any:
    answer = chat(gateway, max_completion_tokens=24).invoke("Tell me about the ferry.")
    return {"text": answer.content, "usage": answer.usage_metadata, "finish": answer.response_metadata["finish_reason"]}


@case
def streamed(gateway: Gateway) -> Any:
    whole: Any = None
    for chunk in chat(gateway, max_completion_tokens=24, stream_usage=True).stream("Tell me about the ferry."):
        whole = chunk if whole is None else whole + chunk
    return {"text": whole.content, "usage": whole.usage_metadata}


@case
def several(gateway: Gateway) -> Any:
    return [answer.content for answer in chat(gateway, max_completion_tokens=24).batch(["One?", "Two?", "Three?"])]


@case
def structured(gateway: Gateway) -> Any:
    return chat(gateway).with_structured_output(Person, method="json_schema").invoke("Somebody.").model_dump()


@case
def structured_by_tool(gateway: Gateway) -> Any:
    return chat(gateway).with_structured_output(Person, method="function_calling").invoke("Somebody.").model_dump()


@case
def structured_by_json_mode(gateway: Gateway) -> Any:
    return chat(gateway).with_structured_output(None, method="json_mode").invoke("Answer in JSON.")


@case
def tools(gateway: Gateway) -> Any:
    answer = chat(gateway).bind_tools([GetWeather], tool_choice="required").invoke("What is the weather in Athens?")
    return [{"name": call["name"], "args": call["args"]} for call in answer.tool_calls]


@case
def tools_streamed(gateway: Gateway) -> Any:
    whole: Any = None
    for chunk in (
        chat(gateway).bind_tools([GetWeather], tool_choice="required").stream("What is the weather in Athens?")
    ):
        whole = chunk if whole is None else whole + chunk
    return [{"name": call["name"], "args": call["args"]} for call in whole.tool_calls]


@case
def responses(gateway: Gateway) -> Any:
    answer = chat(gateway, use_responses_api=True, store=False, seed=None, max_completion_tokens=24).invoke(
        "The ferry?"
    )
    return answer.text if isinstance(answer.text, str) else answer.text()


@case
def completions(gateway: Gateway) -> Any:
    model = OpenAI(model=gateway.model, base_url=gateway.base, api_key=gateway.key, max_tokens=8, max_retries=0, seed=7)
    return {"plain": model.invoke("The ferry"), "streamed": "".join(model.stream("The ferry"))}


@case
def error_404(gateway: Gateway) -> Any:
    try:
        chat(gateway, model="nobody").invoke("Hello?")
    except Exception as error:
        return outcome_of_error(error)
    return {"error": None}


if __name__ == "__main__":
    run()
