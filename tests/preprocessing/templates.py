"""Chat templates in the manner of well-known checkpoints'."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)

#: Roles in headers, content trimmed, a default system message, the tokenizer's own special tokens.
HEADERS = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'Answer in ' ~ (language | default('English')) ~ '.' %}
{%- endif %}
{{- '<|header|>system<|body|>' ~ system ~ eos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '<|header|>' ~ message['role'] ~ '<|body|>' ~ message['content'] | trim ~ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|body|>' }}
{%- endif %}
"""

#: Tools in the system message, calls with their arguments as an object, results by the call's id.
TOOLS = """
{%- if tools %}
    {{- '[tools' }}
    {%- for tool in tools %}{{- ' ' ~ tool.function.name ~ '=' ~ (tool | tojson) }}{% endfor %}
    {{- ']' }}
{%- endif %}
{%- for message in messages %}
    {{- '[' ~ message.role }}
    {%- if message.name %}{{- ' named ' ~ message.name }}{% endif %}
    {%- if message.tool_call_id is defined %}{{- ' for ' ~ message.tool_call_id }}{% endif %}
    {%- if message.reasoning_content %}{{- ' thinking ' ~ message.reasoning_content }}{% endif %}
    {{- ']' }}
    {%- if message.content %}{{- message.content }}{% endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '[call ' ~ call.id ~ ' ' ~ call.function.name }}
        {%- if call.function.arguments is string %}
            {{- ' raw ' ~ call.function.arguments }}
        {%- else %}
            {%- for name, value in call.function.arguments | items %}
                {{- ' ' ~ name ~ '=' ~ (value | tojson) }}
            {%- endfor %}
        {%- endif %}
        {{- ']' }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{% endif %}
"""
