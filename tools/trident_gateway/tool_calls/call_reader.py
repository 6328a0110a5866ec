"""The reading of calls as they come, from behind a marker to where text may come again.

Owns how far the calls of one answer have come. Never drops what turns out to be no call: it can be had back.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence
from enum import Enum, auto

from trident_ensemble.contract.model_card import ToolFormat
from trident_gateway.tool_calls.answer_events import ToolCallDelta, ToolCallStart
from trident_gateway.tool_calls.call_syntax import ID, Beginning, Braces, CallSyntax, Part, Progress
from trident_gateway.tool_calls.event_queue import EventQueue

_BLANKS = " \n\r\t"


class Stage(Enum):
    """The part of a call that comes next."""

    #: What stands before the arguments.
    BEGINNING = auto()
    ARGUMENTS = auto()
    #: What the object of a call has after the arguments: at most an id, where it was held to a grammar.
    REST = auto()
    #: Between the calls of a list.
    LIST = auto()
    #: The end of a call, if its format has one.
    END = auto()
    #: None: the call is over, and text comes next.
    OVER = auto()
    #: None: there was no call.
    FAILED = auto()


class Rest:
    """What the object of a call has after its arguments: nothing, an id, or what belongs to no call."""

    def __init__(self) -> None:
        self._id = Beginning(ID)
        self._may_be_id = True
        #: What has come and may be left out: a part of an id, or white space.
        self._held = ""
        self._skips_blanks = True

    def feed(self, text: str) -> str:
        """Take text of the object; return what is certain to belong to no call, without the white space around it."""
        text, before = self._held + text, self._held
        if self._may_be_id:
            length, progress = self._id.feed(text[len(before) :])
            if progress is Progress.MORE:
                self._held = text
                return ""
            self._may_be_id = False
            if progress is Progress.DONE:
                text = text[len(before) + length :]
        if self._skips_blanks:
            text = text.lstrip(_BLANKS)
        certain = text.rstrip(_BLANKS)
        self._held = text[len(certain) :]
        self._skips_blanks = self._skips_blanks and not certain
        return certain

    def end(self) -> str:
        """Return what was held and is no id, when nothing comes any more."""
        return self._held.strip(_BLANKS)


class CallReader:
    """Reads the calls of one answer.

    Args:
        syntax: how they are written.
        names: of the tools that may be called.
        end: the spelled text behind a call; None where there is none, or it is a token.
        events: takes the calls, and text that belongs to none.
        draw_id: returns the id of a new call.
    """

    def __init__(
        self, syntax: CallSyntax, names: frozenset[str], end: str | None, events: EventQueue, draw_id: Callable[[], str]
    ) -> None:
        self.stage = Stage.OVER
        #: Calls that have begun.
        self.num_calls = 0
        #: The last call has not come to the end of its arguments.
        self.is_open = False
        self._syntax = syntax
        self._names = names
        self._end = end
        self._events = events
        self._draw_id = draw_id
        #: What has come of a call that is not certain yet: the marker with what is before it, and the text after it.
        self._opening, self._consumed = "", ""
        self._beginning = Beginning(())
        self._braces = Braces()
        self._rest = Rest()
        #: White space that the end of the call may follow, and the beginning of that.
        self._held = ""

    @property
    def is_certain(self) -> bool:
        """Whether what has come of a beginning can be nothing but a call, where it was held to a grammar."""
        return bool(self._opening) or self._beginning.is_past_name_key

    @property
    def is_in_string(self) -> bool:
        """Whether what comes next belongs to a string of the arguments."""
        return self.stage is Stage.ARGUMENTS and self._braces.in_string

    def begin(self, opening: str) -> None:
        """Begin a call.

        Args:
            opening: its marker, with the white space before it; empty where there is no marker.
        """
        self._begin(opening, self._syntax.first)

    def feed(self, text: str) -> str:
        """Take text; return what it leaves for the next stage."""
        if self.stage is Stage.BEGINNING:
            return self._read_beginning(text)
        if self.stage is Stage.ARGUMENTS:
            return self._read_arguments(text)
        if self.stage is Stage.REST:
            return self._read_rest(text)
        if self.stage is Stage.LIST:
            return self._read_list(text)
        return self._read_end(text)

    def mark(self, role: str, text: str) -> bool:
        """Take a marker with its text in a beginning; return whether it belongs there."""
        belongs = self._beginning.mark(role)
        if belongs:
            self._consumed += text
        return belongs

    def give_up(self) -> tuple[str, str]:
        """Return what came before the beginning of what is no call, and its text, which must be read again."""
        taken = self._opening, self._consumed
        self._opening = self._consumed = ""
        self.stage = Stage.FAILED
        return taken

    def close(self) -> None:
        """End the call where it is, because something else begins or nothing comes any more."""
        if self.stage is Stage.REST:
            self._events.say(self._rest.end())
        self.is_open = self.is_open or self.stage is Stage.BEGINNING
        self.stage = Stage.OVER

    def _begin(self, opening: str, parts: Sequence[Part]) -> None:
        self._opening, self._consumed, self._held = opening, "", ""
        self._beginning = Beginning(parts)
        self.stage = Stage.BEGINNING

    def _read_beginning(self, text: str) -> str:
        length, progress = self._beginning.feed(text)
        self._consumed += text[:length]
        if progress is Progress.MORE:
            return ""
        if progress is Progress.FAILED or self._beginning.name not in self._names:
            self.stage = Stage.FAILED
            return text[length:]
        self._events.add(ToolCallStart(self.num_calls, self._draw_id(), self._beginning.name))
        self.num_calls += 1
        self.is_open = True
        self._opening = self._consumed = ""
        self._braces = Braces()
        self.stage = Stage.ARGUMENTS
        return text[length:]

    def _read_arguments(self, text: str) -> str:
        end = self._braces.end(text)
        arguments = text if end < 0 else text[:end]
        self._events.add(ToolCallDelta(self.num_calls - 1, arguments))
        if end < 0:
            return ""
        self.is_open = False
        self._braces = Braces(depth=1)
        self._rest = Rest()
        self.stage = Stage.REST if self._syntax.is_object else Stage.OVER
        return text[end:]

    def _read_rest(self, text: str) -> str:
        end = self._braces.end(text)
        self._events.say(self._rest.feed(text if end < 0 else text[: end - 1]))
        if end < 0:
            return ""
        self._events.say(self._rest.end())
        self.stage = Stage.LIST if self._syntax.is_listed else Stage.END
        self._held = ""
        return text[end:]

    def _read_list(self, text: str) -> str:
        text = text.lstrip(_BLANKS)
        if text.startswith(","):
            self._begin(",", self._syntax.next)
            return text[1:]
        if text:
            self.stage = Stage.OVER
        return text.removeprefix("]")

    def _read_end(self, text: str) -> str:
        said = (self._held + text).lstrip(_BLANKS)
        self._held = ""
        if self._end is not None and said.startswith(self._end):
            self.stage = Stage.OVER
            return said.removeprefix(self._end)
        if not said or (self._end is not None and self._end.startswith(said)):
            self._held = said
            return ""
        self.stage = Stage.OVER
        return said


def new_call_id(tool_format: ToolFormat | None) -> str:
    """Return a random id of a call: nine letters and digits for Mistral, whose template takes no other."""
    alphabet = string.ascii_letters + string.digits
    if tool_format is ToolFormat.MISTRAL:
        return "".join(secrets.choice(alphabet) for _ in range(9))
    return "call_" + "".join(secrets.choice(alphabet) for _ in range(24))
