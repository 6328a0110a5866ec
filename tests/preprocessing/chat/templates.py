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

#: As Qwen 2.5: unknown roles are left out, calls are objects, results are joined into one user turn.
QWEN_2 = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content ~ '\\n' }}{% endif %}
    {{- '# Tools <tools>' }}
    {%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{% endfor %}
    {{- '\\n</tools> call in <tool_call></tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
           or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": '
                ~ (call.function.arguments | tojson) ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

#: As Qwen 3: reasoning in the content is taken out of answers before the last question.
QWEN_3 = """
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' and not (message.content.startswith('<tool_response>')
           and message.content.endswith('</tool_response>')) %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role in ['user', 'system'] %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n' ~ call.function.name ~ ' ' }}
            {%- if call.function.arguments is string %}{{- call.function.arguments }}
            {%- else %}{{- call.function.arguments | tojson }}{% endif %}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

#: As Llama 3.1: tools in the first question, one call at a time without its text, results dumped as JSON.
LLAMA_3 = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- if tools is defined and tools is not none %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{% endfor %}
    {{- messages[0]['content'] | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception('one tool call at once') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{% endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

#: As Mistral: alternation is insisted on, ids have nine characters, the system message goes into the last question.
MISTRAL = """
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == 'tool' or message.tool_calls is defined) %}
        {%- if (message.role == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('roles must alternate user and assistant') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and loop.last %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}{{- tool | tojson }}{%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}
            {{- '][/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' }}
        {%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{% endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('ids have nine characters') }}
            {%- endif %}
            {{- (call.function | tojson)[:-1] ~ ', "id": "' ~ call.id ~ '"}' }}
            {%- if not loop.last %}{{- ', ' }}{% endif %}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' ~ message.content ~ ', "call_id": "' ~ message.tool_call_id ~ '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('only user and assistant, and system at the beginning') }}
    {%- endif %}
{%- endfor %}
"""

#: As DeepSeek R1's distilled models: arguments are concatenated, content is compared with none, reasoning is taken out.
R1_DISTILL = """
{%- set ns = namespace(system='', first=true) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{%- set ns.system = message['content'] %}{%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}{%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {%- for tool in message['tool_calls'] %}
            {{- '<|Assistant|><|tool|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n'
                + tool['function']['arguments'] + '\\n```<|tool_end|>' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
        {{- '<|Assistant|>' + content + '<|end|>' }}
    {%- endif %}
    {%- if message['role'] == 'tool' %}{{- '<|result|>' + message['content'] + '<|result_end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{% endif %}
"""

#: As Gemma 3: no system role of its own, content as a text or as parts, every unknown role written.
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- if messages[0].content is string %}{%- set first = messages[0].content ~ '\\n\\n' %}
    {%- else %}{%- set first = messages[0].content[0].text ~ '\\n\\n' %}{%- endif %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set first = '' %}{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' ~ role ~ '\\n' ~ (first if loop.first else '') }}
    {%- if message.content is string %}{{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}{%- if part.type == 'text' %}{{- part.text | trim }}{% endif %}{% endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}
"""

#: As Phi-4-mini: control tokens are put together around the role.
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

#: As gpt-oss: the developer's message is one of its own, tools are written member by member.
HARMONY = """
{%- if messages[0].role in ['developer', 'system'] %}
    {%- set instructions = messages[0].content %}{%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start|>system<|message|>You are a model.<|end|>' }}
{%- if instructions or tools %}
    {{- '<|start|>developer<|message|>' }}
    {%- if instructions %}{{- '# Instructions\\n' ~ instructions }}{% endif %}
    {%- for tool in tools or [] %}
        {{- '\\n// ' ~ tool.function.description ~ '\\ntype ' ~ tool.function.name ~ ' = (_: {' }}
        {%- for name, spec in (tool.function.parameters.properties or {}).items() %}
            {{- name ~ ': ' ~ ('string' if spec.type == 'string' else 'number') ~ ',' }}
        {%- endfor %}
        {{- '}) => any;' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {%- if message.content %}{{- '<|start|>assistant<|message|>' ~ message.content ~ '<|end|>' }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant to=functions.' ~ call.name ~ '<|message|>' ~ (call.arguments | tojson) ~ '<|call|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' ~ message.content ~ '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>functions to=assistant<|message|>' ~ (message.content | tojson) ~ '<|end|>' }}
    {%- elif message.role == 'user' %}{{- '<|start|>user<|message|>' ~ message.content ~ '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}
"""

#: As Command R: whoever is not the user or the system is the chatbot.
COMMAND = """
{{- bos_token }}
{%- for message in messages %}
    {%- set who = {'user': 'USER', 'system': 'SYSTEM'}.get(message.role, 'CHATBOT') %}
    {{- '<|START|><|' ~ who ~ '|>' ~ message.content | trim ~ '<|END|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START|><|CHATBOT|>' }}{% endif %}
"""

#: As templates of models that see: parts alone are read.
PARTS_ALONE = """
{%- for message in messages %}
    {{- message.role | capitalize ~ ': ' }}
    {%- for part in message.content %}{%- if part['type'] == 'text' %}{{- part['text'] }}{% endif %}{% endfor %}
    {{- '<end_of_utterance>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{% endif %}
"""

#: As Llama 2's: after a system message at the beginning, what is not the user's or the assistant's is left out.
PAIRS = """
{%- if messages[0].role == 'system' %}{%- set first = '<<SYS>>' + messages[0].content + '<</SYS>>' %}
{%- else %}{%- set first = '' %}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + first + message.content | trim + ' [/INST]' }}{%- set first = '' %}
    {%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}
"""
