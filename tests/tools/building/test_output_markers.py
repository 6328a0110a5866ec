"""What a build finds out of templates in the manner of well-known checkpoints'."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.preprocessing.chat import templates
from tests.tokenizer_zoo import SPECIAL, byte_level_bpe
from trident_ensemble.contract.model_card import Marker, Reasoning, ToolFormat
from trident_preprocessing.chat.template_probe import probe_profiles
from trident_preprocessing.chat.template_renderer import TemplateRenderer
from trident_tools.building.output_markers import OutputMarkers, find_markers

_CALLS = """
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {%- if call.function.arguments is string %}{{- call.function.arguments }}
            {%- else %}{{- call.function.arguments | tojson }}{% endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}"""
#: As Qwen 3 and QwQ: calls in tags, reasoning kept in the last answer; the prompt may begin it.
THINKING = (
    """
{%- for tool in tools or [] %}{{- '<tools>' ~ (tool | tojson) ~ '</tools>' }}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- if message.reasoning_content is defined and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content or '' }}"""
    + _CALLS
    + """
    {%- else %}{{- message.content }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}BEGUN{% endif %}
"""
)
#: As Mistral from version 11 on: names and arguments in their own tokens; BETWEEN may be the call's id.
NAMED = """
{{- bos_token }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '[TOOL_CALLS]' + call.function.name ~ BETWEEN ~ '[ARGS]' + call.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
#: A call as Python code, as some small models write it.
PYTHONIC = """
{%- for tool in tools or [] %}{{- tool | tojson }}{% endfor %}
{%- for message in messages %}
    {{- message.role ~ ': ' ~ (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '[' ~ call.function.name ~ '(' }}
        {%- for name, value in call.function.arguments | items %}{{- name ~ '=' ~ (value | tojson) }}{% endfor %}
        {{- ')]' }}
    {%- endfor %}
{%- endfor %}
"""
pytestmark = pytest.mark.slow

TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CONTROL = ("<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")


def found(template: str | dict[str, str] | None, tokens: tuple[str, ...] = (*TOKENS, *CONTROL)) -> OutputMarkers:
    """The findings for a template and a tokenizer with these tokens, whose ids become their places among them."""
    backend: Tokenizer = byte_level_bpe()
    backend.add_special_tokens([AddedToken(text, special=True) for text in tokens if text in CONTROL])
    backend.add_tokens([AddedToken(text, special=False) for text in tokens if text in TOKENS])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    tokenizer.chat_template = template
    renderer = TemplateRenderer(tokenizer)
    markers = find_markers(renderer, probe_profiles(renderer), backend, 1001)
    for marker in (*markers.tool_markers.values(), *_of(markers.reasoning)):
        assert marker.token_id == (backend.token_to_id(marker.text) if marker.text in (*tokens, "<think>") else None)
    return markers


def _of(reasoning: Reasoning | None) -> tuple[Marker, ...]:
    return (reasoning.start, reasoning.end) if reasoning else ()


def texts(markers: OutputMarkers) -> dict[str, str]:
    """The texts of tool markers by role."""
    return {role: marker.text for role, marker in markers.tool_markers.items()}


HERMES_TEXTS = {"start": "<tool_call>", "end": "</tool_call>"}


@pytest.mark.parametrize(
    ("template", "tool_format", "markers"),
    [
        (templates.QWEN_2, ToolFormat.HERMES, HERMES_TEXTS),
        (THINKING.replace("BEGUN", ""), ToolFormat.HERMES, HERMES_TEXTS),
        (templates.LLAMA_3, ToolFormat.LLAMA3, {"start": "<|python_tag|>"}),
        (templates.MISTRAL, ToolFormat.MISTRAL, {"start": "[TOOL_CALLS]"}),
        (NAMED.replace("BETWEEN", "''"), ToolFormat.MISTRAL, {"start": "[TOOL_CALLS]", "arguments": "[ARGS]"}),
        (
            NAMED.replace("BETWEEN", "'[CALL_ID]' ~ call.id"),
            ToolFormat.MISTRAL,
            {"start": "[TOOL_CALLS]", "arguments": "[ARGS]", "call_id": "[CALL_ID]"},
        ),
    ],
)
def test_find_markers_tells_the_formats_of_calls_apart(
    template: str, tool_format: ToolFormat, markers: dict[str, str]
) -> None:
    """By what a template writes; with the ids of markers that are tokens."""
    tokens = found(template)
    assert (tokens.takes_tools, tokens.tool_format, texts(tokens)) == (True, tool_format, markers)
    assert all(marker.token_id is not None for marker in tokens.tool_markers.values())
    spelled = found(template, ())
    kept = {} if tool_format is ToolFormat.LLAMA3 else markers
    assert (spelled.takes_tools, spelled.tool_format, texts(spelled)) == (True, tool_format, kept)
    assert all(marker.token_id is None for marker in spelled.tool_markers.values())


@pytest.mark.parametrize("name", ["CHATML", "HEADERS", "GEMMA", "PHI", "COMMAND", "R1_DISTILL"])
def test_find_markers_finds_no_tools_where_a_template_takes_none(name: str) -> None:
    """A template that leaves tools out takes none."""
    markers = found(getattr(templates, name))
    assert (markers.takes_tools, markers.tool_format, markers.tool_markers) == (False, None, {})


@pytest.mark.parametrize("template", [templates.HARMONY, templates.TOOLS, PYTHONIC, templates.QWEN_3])
def test_find_markers_knows_no_other_format(template: str) -> None:
    """Calls of another form are not taken for one of the known ones."""
    assert found(template).tool_format is None


@pytest.mark.parametrize(
    ("template", "starts_in_prompt"),
    [
        (THINKING.replace("BEGUN", ""), False),
        (THINKING.replace("BEGUN", "{{- '<think>\\n' }}"), True),
        (THINKING.replace("BEGUN", "{{- '<think>\\n\\n</think>\\n' }}"), False),
        (templates.QWEN_3, False),
        (templates.R1_DISTILL, True),
        (templates.CHATML, False),
    ],
)
def test_find_markers_finds_reasoning(template: str, starts_in_prompt: bool) -> None:
    """Written around an answer's reasoning, begun by the prompt, or taken out of answers."""
    reasoning = found(template).reasoning
    assert reasoning is not None
    assert (reasoning.start.text, reasoning.end.text) == ("<think>", "</think>")
    assert reasoning.starts_in_prompt is starts_in_prompt


@pytest.mark.parametrize("name", ["HEADERS", "QWEN_2", "LLAMA_3", "MISTRAL", "GEMMA", "PHI", "HARMONY", "COMMAND"])
def test_find_markers_finds_no_reasoning_where_there_is_none(name: str) -> None:
    """Most templates know nothing of it."""
    assert found(getattr(templates, name)).reasoning is None


def test_find_markers_looks_at_the_template_for_tools() -> None:
    """Where there are several, calls are those of the one named `tool_use`."""
    markers = found({"default": templates.CHATML, "tool_use": templates.QWEN_2})
    assert markers.tool_format is ToolFormat.HERMES
    assert markers.reasoning is not None


def test_find_markers_without_a_template_finds_nothing() -> None:
    """A checkpoint without a template has no messages either."""
    assert found(None) == OutputMarkers()
