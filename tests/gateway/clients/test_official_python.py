"""The official client for Python, of the newest version."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.clients.answers import CARD, SENTENCE
from tests.gateway.clients.conftest import Served
from tests.gateway.clients.environments import NEWEST, run_script
from tests.gateway.http.room import run, until

pytestmark = pytest.mark.slow

Outcomes = dict[str, Any]
CALL = {"name": "get_weather", "arguments": {"place": "Athens", "days": 1}}


@pytest.fixture(scope="module")
def outcomes(served: Served) -> Outcomes:
    """What became of each conversation."""
    return run_script(NEWEST, "openai_python", *served.arguments)


def calls_of(outcome: Any) -> list[dict[str, Any]]:
    """Return the calls of an outcome, with their arguments read."""
    calls = outcome["calls"]
    made = calls.values() if isinstance(calls, dict) else calls[0]
    assert all(call["id"].startswith("call_") for call in made)
    return [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in made]


def test_official_python_every_answer_is_of_its_types(outcomes: Outcomes, served: Served) -> None:
    exchanges, problems = served.judged()
    assert len(exchanges) >= len(outcomes)
    assert problems == []
    assert all("traceback" not in outcome for outcome in outcomes.values() if isinstance(outcome, dict)), outcomes


def test_official_python_plain_and_streamed_chats_agree(outcomes: Outcomes) -> None:
    plain, streamed, counted = outcomes["plain"], outcomes["streamed"], outcomes["streamed_usage"]
    assert plain["text"] == [SENTENCE]
    assert plain["finish"] == ["stop"]
    assert streamed["text"] == counted["text"] == {"0": SENTENCE}
    assert streamed["roles"] == {"0": "assistant"}
    assert streamed["finish"] == {"0": "stop"}
    assert (streamed["usage"], counted["usage"]) == (None, plain["usage"])
    assert streamed["count"] > 8
    assert outcomes["asynchronous"] == [SENTENCE] * 8


def test_official_python_headers(outcomes: Outcomes) -> None:
    headers = outcomes["raw_headers"]
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "mine-1.a"
    assert int(headers["openai-processing-ms"]) >= 0
    assert headers["cache-control"] == "no-store"
    assert headers["parsed id"].startswith("chatcmpl-")


def test_official_python_several_answers(outcomes: Outcomes) -> None:
    assert outcomes["several"]["text"] == [SENTENCE] * 3
    assert outcomes["several_streamed"]["text"] == {str(index): SENTENCE for index in range(3)}
    assert outcomes["several_streamed"]["finish"] == dict.fromkeys("012", "stop")
    plain, several = outcomes["plain"]["usage"], outcomes["several"]["usage"]
    assert several["completion_tokens"] == 3 * plain["completion_tokens"]
    assert several["prompt_tokens"] == plain["prompt_tokens"]


def test_official_python_stop(outcomes: Outcomes) -> None:
    stopped = outcomes["stop"]
    assert stopped["whole"] == stopped["text"][0] + stopped["word"] + stopped["whole"].split(stopped["word"], 1)[1]
    assert stopped["finish"] == ["stop"]


def test_official_python_log_probabilities(outcomes: Outcomes) -> None:
    scored = outcomes["logprobs"]
    raw = b"".join(bytes(entry["bytes"]) for entry in scored["logprobs"])
    assert raw.decode() == scored["text"][0]
    assert len(scored["logprobs"]) == scored["usage"]["completion_tokens"] == outcomes["logprobs_streamed"]["logprobs"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in scored["logprobs"])


def test_official_python_json(outcomes: Outcomes) -> None:
    assert json.loads(outcomes["json_object"]["text"][0]) == {}
    person = {"name": "Ada", "age": 1}
    assert json.loads(outcomes["json_schema"]["text"][0]) == person
    assert outcomes["parsed"]["name"] == outcomes["parsed_stream"]["person"]["name"] == "Ada"
    assert {"chunk", "content.delta", "content.done"} <= set(outcomes["parsed_stream"]["kinds"])


@pytest.mark.parametrize("streamed", ["", "_streamed"])
def test_official_python_tools(outcomes: Outcomes, streamed: str) -> None:
    auto, required, named = (outcomes[f"tools_{choice}{streamed}"] for choice in ("auto", "required", "named"))
    for outcome, reason in ((auto, "tool_calls"), (required, "tool_calls"), (named, "stop")):
        assert calls_of(outcome) == [CALL]
        assert (outcome["finish"]["0"] if streamed else outcome["finish"][0]) == reason
    assert (auto["text"]["0"] if streamed else auto["text"][0]).startswith("Let me see.")


def test_official_python_tools_in_other_ways(outcomes: Outcomes) -> None:
    assert outcomes["tools_none"]["text"] == [SENTENCE]
    helper = outcomes["tools_helper_stream"]
    assert helper["finish"] == "tool_calls"
    assert json.loads(helper["calls"][0]["arguments"]) == CALL["arguments"]
    assert "tool_calls.function.arguments.done" in helper["kinds"]
    assert outcomes["tool_conversation"]["text"] == [SENTENCE]
    assert outcomes["arguments_are_json"] == CALL["arguments"]


def test_official_python_completions(outcomes: Outcomes) -> None:
    plain, streamed = outcomes["completions"], outcomes["completions_streamed"]
    assert SENTENCE.startswith(plain["text"])
    assert (plain["text"], plain["usage"]) == (streamed["text"], streamed["usage"])
    assert [plain["finish"]] == streamed["finish"] == ["length"]
    assert plain["usage"]["completion_tokens"] == 8
    assert outcomes["completions_several"]["indexes"] == [0, 1, 2, 3]
    assert outcomes["completions_several"]["usage"]["completion_tokens"] == 16
    assert outcomes["completions_token_ids"]["usage"]["prompt_tokens"] == 3


def test_official_python_echo(outcomes: Outcomes) -> None:
    echoed, scored = outcomes["completions_echo"], outcomes["completions_scored"]
    assert echoed["text"].startswith("The ferry")
    assert "".join(echoed["logprobs"]["tokens"]) == echoed["text"]
    assert echoed["logprobs"]["token_logprobs"][0] is None
    assert echoed["logprobs"]["text_offset"][0] == 0
    assert (scored["text"], "".join(scored["tokens"])) == ("The ferry", "The ferry")
    assert scored["usage"]["completion_tokens"] == 0


def test_official_python_responses(outcomes: Outcomes) -> None:
    plain, streamed = outcomes["responses"], outcomes["responses_streamed"]
    assert (plain["text"], plain["status"]) == (SENTENCE, "completed")
    assert streamed["text"] == streamed["final"] == SENTENCE
    assert streamed["kinds"][:2] == ["response.created", "response.in_progress"]
    assert streamed["kinds"][-1] == "response.completed"
    assert outcomes["responses_parsed"]["name"] == "Ada"
    (call,) = outcomes["responses_tools"]
    assert (call["type"], call["name"]) == ("function_call", CALL["name"])
    assert json.loads(call["arguments"]) == CALL["arguments"]
    tools = outcomes["responses_tools_streamed"]
    assert [tools["arguments"]] == tools["done"]


def test_official_python_models(outcomes: Outcomes) -> None:
    assert CARD.name in outcomes["models"]["listed"]
    assert outcomes["models"]["one"] == CARD.name


#: The class that the client raises, the status, and the body's code and field; `""` where the code is left open.
ERRORS: dict[str, tuple[str, int, str | None, str | None]] = {
    "error_401": ("AuthenticationError", 401, "invalid_api_key", None),
    "error_404": ("NotFoundError", 404, "model_not_found", "model"),
    "error_400": ("BadRequestError", 400, "invalid_value", "temperature"),
    "error_400_unknown": ("BadRequestError", 400, "unknown_parameter", "colour"),
    "error_400_message": ("BadRequestError", 400, "", "messages[1].content[0]"),
    "error_400_context": ("BadRequestError", 400, "context_length_exceeded", "messages"),
    "error_400_store": ("BadRequestError", 400, "", "previous_response_id"),
    "error_429": ("RateLimitError", 429, "rate_limit_exceeded", None),
}


@pytest.mark.parametrize("case", ERRORS)
def test_official_python_errors(outcomes: Outcomes, case: str) -> None:
    outcome, (error, status, code, param) = outcomes[case], ERRORS[case]
    assert (outcome["error"], outcome["status_code"], outcome["param"]) == (error, status, param)
    assert outcome["code"] == code or code == ""
    assert outcome["type"] == ("requests" if status == 429 else "invalid_request_error")
    assert outcome["request_id"]


def test_official_python_embeddings_are_refused(outcomes: Outcomes) -> None:
    assert 400 <= outcomes["embeddings"]["status_code"] < 500
    assert outcomes["embeddings"]["type"] == "invalid_request_error"


def test_official_python_a_stream_that_is_closed_is_hung_up(outcomes: Outcomes, served: Served) -> None:
    assert outcomes["hang_up"] == "assistant"
    assert served.triton.ended["left"] + served.triton.ended["cancelled"] >= 1
    run(lambda: until(lambda: not served.triton.running))
