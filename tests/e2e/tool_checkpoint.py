"""The demo's checkpoint with a chat template that has tools, whose markers are tokens of their own.

Owns what is changed. Never touches a weight: two special tokens that the demo hardly needs get the markers' names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
_RENAMED = {"<|pad|>": "<tool_call>", "<|system|>": "</tool_call>"}
_TEMPLATE = """\
{{- bos_token -}}
{%- for tool in tools or [] %}{{- '<|user|>' ~ (tool | tojson) ~ '<|end|>' }}{% endfor %}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- '<|user|>' ~ message.content ~ '<|end|>' -}}
    {%- else -%}
        {{- '<|' ~ ('user' if message.role == 'system' else message.role) ~ '|>' ~ (message.content or '') | trim -}}
        {%- for call in message.tool_calls or [] -%}
            {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
            {%- if call.function.arguments is string %}{{- call.function.arguments }}
            {%- else %}{{- call.function.arguments | tojson }}{% endif -%}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make_tool_checkpoint(folder: Path) -> Path:
    """Write the checkpoint into a new folder; return that."""
    shutil.copytree(DEMO, folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    path = folder / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["content"] = _RENAMED.get(token["content"], token["content"])
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {_RENAMED.get(text, text): number for text, number in vocabulary.items()}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("<|pad|>", "<|end|>"), encoding="utf-8")
    return folder
