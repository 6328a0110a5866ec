"""`trident chat`: a conversation in the terminal.

Owns the command's options, what is typed and what is shown. Text of the model goes to standard output, everything else
to standard error, so that a pipe gets the answers alone. Never speaks to the server itself.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import closing, suppress
from importlib import import_module

from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.errors import ServerError
from trident_tools.chat_client import ChatAnswer, ChatClient

_PROMPT = "> "
_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."
#: Control characters but newline and tab: a model's text must not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--url", default="localhost:8001", help="host:port of the server's gRPC (default: %(default)s)")
    parser.add_argument("--model", default=layout.ENSEMBLE, help="default: %(default)s")
    parser.add_argument("--system", metavar="TEXT", help="a system message, before the conversation")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of one answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the checkpoint's)")


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends; return 0.

    Raises:
        ServerError: no server answers at the start; later errors are shown, and the conversation goes on.
    """
    options: dict[tensors.TensorSpec, object] = {tensors.MAX_TOKENS: args.max_tokens}
    if args.temperature is not None:
        options[tensors.TEMPERATURE] = args.temperature
    with closing(ChatClient(args.url, args.model, options)) as client:
        _Conversation(client, args.system).talk()
    return 0


class _Conversation:
    """A conversation: its messages, and the loop of questions and answers."""

    def __init__(self, client: ChatClient, system: str | None) -> None:
        self._client = client
        self._start = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)
        self._terminal = sys.stdin.isatty()

    def talk(self) -> None:
        if self._terminal:
            _tell(_HELP)
            with suppress(ImportError):
                import_module("readline")  # gives `input` line editing, where Python has it
        while (line := self._read()) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                self._messages = list(self._start)
                _tell("The conversation is forgotten.")
            elif line.startswith("/"):
                _tell(f"{line.split()[0]}: no such command. {_HELP}")
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        """Return the next line without surrounding blanks; None at the end."""
        while True:
            try:
                return input(_PROMPT if self._terminal else "").strip()
            except EOFError:
                if self._terminal:
                    print()
                return None
            except KeyboardInterrupt:
                _tell("\n/exit or Ctrl-D leaves.")

    def _answer(self, line: str) -> None:
        """Ask a question; an answer that is interrupted stays in the conversation, a question that failed does not."""
        question = {"role": "user", "content": line}
        answer = ChatAnswer()
        text = ""
        pieces = self._client.ask([*self._messages, question], answer)
        try:
            with closing(pieces):
                for piece in pieces:
                    text += piece
                    print(_CONTROL.sub("", piece), end="", flush=True)
        except KeyboardInterrupt:
            answer.finish_reason = "cancelled"
        except ServerError as error:
            print(end="\n" if text else "", flush=True)
            _tell(f"error: {error}")
            return
        print(flush=True)
        self._messages += [question, {"role": "assistant", "content": text}]
        _tell(_statistics(answer))


def _statistics(answer: ChatAnswer) -> str:
    parts = [f"{answer.num_tokens} tokens"]
    if answer.first_token_s is not None:
        parts.append(f"first after {answer.first_token_s * 1000:.0f} ms")
    if answer.tokens_per_s is not None:
        parts.append(f"then {answer.tokens_per_s:.1f} tokens/s")
    if answer.finish_reason != "eos":
        parts.append({"length": "cut at --max-tokens"}.get(answer.finish_reason, answer.finish_reason))
    return f"[{', '.join(parts)}]"


def _tell(text: str) -> None:
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)
