"""The official client for Node."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.clients.answers import SENTENCE
from tests.gateway.clients.conftest import Served
from tests.gateway.clients.environments import NODE, node_program, read_outcomes, run_client
from tests.gateway.http.room import run, until

pytestmark = pytest.mark.slow

Outcomes = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(served: Served) -> Outcomes:
    """What became of each conversation."""
    return read_outcomes(run_client([node_program(), NODE / "openai_node.mjs", *served.arguments]))


def test_official_node_every_answer_is_of_its_types(outcomes: Outcomes, served: Served) -> None:
    exchanges, problems = served.judged()
    assert len(exchanges) >= len(outcomes)
    assert problems == []
    assert all("traceback" not in outcome for outcome in outcomes.values() if isinstance(outcome, dict)), outcomes


def test_official_node_chats(outcomes: Outcomes) -> None:
    plain, streamed, helper = outcomes["plain"], outcomes["streamed"], outcomes["stream_helper"]
    assert plain["text"] == streamed["text"] == helper["text"] == helper["final"] == SENTENCE
    assert plain["usage"] == streamed["usage"]
    assert plain["finish"] == "stop"
    assert helper["logprobs"] == plain["usage"]["completion_tokens"]
    assert SENTENCE.startswith(outcomes["completions"]["text"])


def test_official_node_tools_and_json(outcomes: Outcomes) -> None:
    arguments = {"place": "Athens", "days": 1}
    assert outcomes["tools"] == {"name": "get_weather", "arguments": arguments, "finish": "tool_calls"}
    assert outcomes["run_tools"]["calls"] == [arguments]
    assert outcomes["run_tools"]["roles"] == ["user", "assistant", "tool"]
    assert outcomes["json_schema"] == {"name": "Ada", "age": 1}


def test_official_node_responses_and_models(outcomes: Outcomes) -> None:
    assert outcomes["responses"] == {"text": SENTENCE, "status": "completed"}
    assert outcomes["responses_streamed"] == {"text": SENTENCE, "final": SENTENCE}
    assert outcomes["models"]["one"] in outcomes["models"]["listed"]


@pytest.mark.parametrize(
    ("case", "error", "status", "code"),
    [
        ("error_401", "AuthenticationError", 401, "invalid_api_key"),
        ("error_404", "NotFoundError", 404, "model_not_found"),
        ("error_400", "BadRequestError", 400, "invalid_value"),
        ("error_429", "RateLimitError", 429, "rate_limit_exceeded"),
    ],
)
def test_official_node_errors(outcomes: Outcomes, case: str, error: str, status: int, code: str) -> None:
    outcome = outcomes[case]
    assert (outcome["error"], outcome["status"], outcome["code"]) == (error, status, code)


def test_official_node_a_stream_that_is_aborted_is_hung_up(outcomes: Outcomes, served: Served) -> None:
    assert outcomes["hang_up"] == "assistant"
    run(lambda: until(lambda: not served.triton.running))
