"""Conversations through instructor, which holds the official client at an older version."""

from __future__ import annotations

from typing import Any, Literal

import instructor  # type: ignore[import-not-found]
import openai  # type: ignore[import-not-found]
from openai import OpenAI
from pydantic import BaseModel

from tests.gateway.clients.scripts.cases import Gateway, case, run


class Person(BaseModel):
    """Somebody."""

    name: Literal["Ada", "Eve"]
    age: int


def client_of(gateway: Gateway, mode: instructor.Mode) -> Any:
    """Return a client that asks in this mode, once."""
    client = OpenAI(base_url=gateway.base, api_key=gateway.key, max_retries=0, timeout=60)
    return instructor.from_openai(client, mode=mode)


def extracted(gateway: Gateway, mode: instructor.Mode) -> Any:
    """Return a person."""
    return (
        client_of(gateway, mode)
        .chat.completions.create(
            model=gateway.model, response_model=Person, max_retries=0, max_tokens=400,
            messages=[{"role": "user", "content": "Somebody, please."}],
        )
        .model_dump()
    )  # fmt: skip


@case
def by_tools(gateway: Gateway) -> Any:
    return extracted(gateway, instructor.Mode.TOOLS)


@case
def by_strict_tools(gateway: Gateway) -> Any:
    return extracted(gateway, instructor.Mode.TOOLS_STRICT)


@case
def by_json_schema(gateway: Gateway) -> Any:
    return extracted(gateway, instructor.Mode.JSON_SCHEMA)


@case
def partial(gateway: Gateway) -> Any:
    found = list(
        client_of(gateway, instructor.Mode.TOOLS).chat.completions.create_partial(
            model=gateway.model, response_model=Person, max_tokens=400,
            messages=[{"role": "user", "content": "Somebody, please."}],
        )
    )  # fmt: skip
    return found[-1].model_dump()


@case
def version(_gateway: Gateway) -> Any:
    return openai.__version__


if __name__ == "__main__":
    run()
