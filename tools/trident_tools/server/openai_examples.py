"""What to type to ask a gateway: a line of curl and three lines of Python.

Owns these lines, and how an address stands in a URL that is typed on this machine. Never prints anything, and never
knows whether a command of its own or `trident serve` has started the gateway.
"""

from __future__ import annotations

_LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::1")  # noqa: S104 (names of addresses, nothing is bound)


def typed_host(address: str) -> str:
    """Return the host as it stands in a URL that is typed on this machine."""
    host = "localhost" if address in _LOCAL else address
    return f"[{host}]" if ":" in host else host


def base_url(address: str, port: int, *, speaks_tls: bool) -> str:
    """Return the URL that clients of OpenAI's API take."""
    return f"{'https' if speaks_tls else 'http'}://{typed_host(address)}:{port}/v1"


def openai_examples(url: str, model: str, *, takes_messages: bool, asks_for_keys: bool) -> str:
    """Return the examples, in five lines.

    Args:
        url: from `base_url`.
        model: the model that they ask.
        takes_messages: it has a chat template.
        asks_for_keys: a key is needed; curl and the client take it from the variable OPENAI_API_KEY.
    """
    header = ' -H "Authorization: Bearer $OPENAI_API_KEY"' if asks_for_keys else ""
    key = "" if asks_for_keys else ', api_key="none"'
    if takes_messages:
        path, prompt = "chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'
        message = "[{'role': 'user', 'content': 'Hello!'}]"
        call = f"chat.completions.create(model={model!r}, messages={message}).choices[0].message.content"
    else:
        path, prompt = "completions", '"prompt": "The"'
        call = f"completions.create(model={model!r}, prompt='The').choices[0].text"
    return f"""\
  curl -s {url}/{path}{header} -H "Content-Type: application/json" -d '{{"model": "{model}", {prompt}}}'
or in Python:
  from openai import OpenAI
  client = OpenAI(base_url="{url}"{key})
  print(client.{call})"""
