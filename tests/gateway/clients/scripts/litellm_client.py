"""Conversations through litellm."""

from __future__ import annotations

from typing import Any

import litellm  # type: ignore[import-not-found]

from tests.gateway.clients.scripts.cases import PERSON, PLAIN, TOOL, WEATHER, Gateway, case, outcome_of_error, run


def options(gateway: Gateway, **more: Any) -> dict[str, Any]:
    """Return what every call has."""
    return {
        "model": f"openai/{gateway.model}", "api_base": gateway.base, "api_key": gateway.key, "num_retries": 0,
        "timeout": 60, **more,
    }  # fmt: skip


@case
def plain(gateway: Gateway) -> Any:
    answer = litellm.completion(messages=PLAIN, max_tokens=24, seed=7, **options(gateway))
    return {"text": answer.choices[0].message.content, "usage": answer.usage.model_dump()}


@case
def streamed(gateway: Gateway) -> Any:
    chunks = list(
        litellm.completion(
            messages=PLAIN, max_tokens=24, seed=7, stream=True, stream_options={"include_usage": True},
            **options(gateway),
        )
    )  # fmt: skip
    joined = litellm.stream_chunk_builder(chunks, messages=PLAIN)
    return {"text": joined.choices[0].message.content, "usage": joined.usage.model_dump()}


@case
def tools(gateway: Gateway) -> Any:
    answer = litellm.completion(
        messages=WEATHER, tools=[TOOL], tool_choice="required", max_tokens=400, **options(gateway)
    )
    (call,) = answer.choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": call.function.arguments, "finish": answer.choices[0].finish_reason}


@case
def tools_streamed(gateway: Gateway) -> Any:
    chunks = list(
        litellm.completion(
            messages=WEATHER, tools=[TOOL], tool_choice="required", max_tokens=400, stream=True, **options(gateway)
        )
    )
    joined = litellm.stream_chunk_builder(chunks, messages=WEATHER)
    (call,) = joined.choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": call.function.arguments}


@case
def json_schema(gateway: Gateway) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = litellm.completion(messages=PLAIN, response_format=form, max_tokens=400, **options(gateway))
    return answer.choices[0].message.content


@case
def completions(gateway: Gateway) -> Any:
    given = options(gateway, model=f"text-completion-openai/{gateway.model}")
    return litellm.text_completion(prompt="The ferry", max_tokens=8, seed=7, **given).choices[0].text


@case
def responses(gateway: Gateway) -> Any:
    answer = litellm.responses(input="The ferry?", max_output_tokens=24, store=False, **options(gateway))
    return answer.output[-1].content[0].text


@case
def error_401(gateway: Gateway) -> Any:
    return refused({**options(gateway), "api_key": "sk-nobody"})


@case
def error_404(gateway: Gateway) -> Any:
    return refused({**options(gateway), "model": "openai/nobody"})


@case
def error_400(gateway: Gateway) -> Any:
    return refused({**options(gateway), "temperature": 9})


@case
def error_429(gateway: Gateway) -> Any:
    spent = {**options(gateway), "api_key": gateway.spent_key, "max_retries": 0}
    refused(spent)
    return refused(spent)


def refused(given: dict[str, Any]) -> Any:
    """Return the error of what must fail."""
    try:
        litellm.completion(messages=PLAIN, max_tokens=2, **given)
    except Exception as error:
        return outcome_of_error(error)
    return {"error": None}


if __name__ == "__main__":
    litellm.suppress_debug_info = True
    run()
