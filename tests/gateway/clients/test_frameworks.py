"""What people build applications with: litellm, langchain-openai and instructor."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.clients.answers import SENTENCE
from tests.gateway.clients.conftest import Served
from tests.gateway.clients.environments import NEWEST, PINNED, run_script

pytestmark = pytest.mark.slow

WEATHER = {"place": "Athens", "days": 1}


def converse(served: Served, environment: str, script: str) -> dict[str, Any]:
    """Run a script, and hold every answer to the types of the official client."""
    outcomes = run_script(environment, script, *served.arguments)
    exchanges, problems = served.judged()
    assert exchanges
    assert problems == []
    assert all("traceback" not in outcome for outcome in outcomes.values() if isinstance(outcome, dict)), outcomes
    return outcomes


def test_frameworks_litellm(served: Served) -> None:
    outcomes = converse(served, NEWEST, "litellm_client")
    plain, streamed = outcomes["plain"], outcomes["streamed"]
    assert plain["text"] == streamed["text"] == outcomes["responses"] == SENTENCE
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert plain["usage"][name] == streamed["usage"][name]
    for case in ("tools", "tools_streamed"):
        assert (outcomes[case]["name"], json.loads(outcomes[case]["arguments"])) == ("get_weather", WEATHER)
    assert outcomes["tools"]["finish"] == "tool_calls"
    assert json.loads(outcomes["json_schema"]) == {"name": "Ada", "age": 1}
    assert SENTENCE.startswith(outcomes["completions"])
    assert {case: outcomes[case]["error"] for case in outcomes if case.startswith("error")} == {
        "error_401": "AuthenticationError", "error_404": "NotFoundError", "error_400": "BadRequestError",
        "error_429": "RateLimitError",
    }  # fmt: skip


def test_frameworks_langchain(served: Served) -> None:
    outcomes = converse(served, NEWEST, "langchain_client")
    plain, streamed = outcomes["plain"], outcomes["streamed"]
    assert plain["text"] == streamed["text"] == outcomes["responses"] == SENTENCE
    assert plain["usage"] == streamed["usage"]
    assert plain["finish"] == "stop"
    assert outcomes["several"] == [SENTENCE] * 3
    assert outcomes["structured"]["name"] == outcomes["structured_by_tool"]["name"] == "Ada"
    assert outcomes["structured_by_json_mode"] == {}
    call = [{"name": "GetWeather", "args": {"place": "Athens", "days": 36}}]
    assert outcomes["tools"] == outcomes["tools_streamed"] == call
    assert outcomes["completions"]["plain"] == outcomes["completions"]["streamed"] != ""
    assert "NotFoundError" in outcomes["error_404"]["bases"]


def test_frameworks_instructor(served: Served) -> None:
    outcomes = converse(served, PINNED, "instructor_client")
    person = {"name": "Ada", "age": 36}
    for case in ("by_tools", "by_strict_tools", "by_json_schema", "partial"):
        assert outcomes[case] == person, case
