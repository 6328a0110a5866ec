"""The answers to one request on their way to its client: a stream for each of its sequences.

Owns what has come of each sequence, what of it may leave and what has left. Pure: nothing is sent here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trident_backend.requests.request import Request
from trident_backend.sequences.sequence import Sequence
from trident_backend.serving.events import TokenEvent
from trident_backend.serving.flow_control import FlowControl
from trident_backend.serving.output_tensors import ResponseSlice
from trident_backend.serving.responses import Responder
from trident_ensemble.contract.chunk_header import ALL, Part
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.text.anchors import context_ids


@dataclass(eq=False)
class Stream:
    """One sequence's tokens, an echoed prompt's before them.

    Args:
        sequence: whose.
        answer: of which this is a part.
        num_echoed: tokens of the prompt that come before the output.
        token_ids: so far, sent or not.
        num_safe: of them, those that may leave.
        num_sent: of these, those that have.
        ended: no token comes any more.
    """

    sequence: Sequence
    answer: Answer
    num_echoed: int
    token_ids: list[int] = field(default_factory=list)
    num_safe: int = 0
    num_sent: int = 0
    ended: bool = False

    def take(self, event: TokenEvent) -> None:
        """What the loop tells of the sequence."""
        self.token_ids.extend(event.token_ids)
        self.ended = event.finish_reason is not None
        self.answer.error = self.answer.error or event.error
        if self.ended or event.num_safe_tokens is None:
            self.num_safe = len(self.token_ids)
        else:
            self.num_safe = event.num_safe_tokens

    @property
    def is_held(self) -> bool:
        """Whether something could be sent while it streams."""
        return self.ended or self.num_sent < self.num_safe

    def context_ids(self, anchors: bytes) -> list[int]:
        """Return the ids before those that are sent next that decoding needs."""
        skip = self.answer.request.output.skip_special_tokens
        return context_ids(anchors, self.token_ids, self.num_sent, skip_special_tokens=skip)

    def send(self) -> tuple[list[int], Part, ResponseSlice]:
        """All that may leave, which then has left."""
        start, end = self.num_sent, self.num_safe
        self.num_sent = end
        span = ResponseSlice(self.sequence, end - start, max(0, start - self.num_echoed), max(0, end - self.num_echoed))
        return self.token_ids[start:end], self._part(start, end), span

    def _part(self, start: int, end: int) -> Part:
        if not self.ended:
            return Part(end - start)
        stop_strings, num_silent, num_characters = self.sequence.stop_strings, self.sequence.num_hidden_tail_tokens, ALL
        if stop_strings is not None and stop_strings.num_characters != ALL:
            num_silent = max(num_silent, stop_strings.num_hidden_tail_tokens)
            num_characters = stop_strings.num_characters - stop_strings.text_end(start)
        return Part(end - start, num_silent, num_characters)


class Answer:
    """What one request gets.

    Args:
        request: which.
        responder: the way to its client.
        settings: flow control's bounds.

    Attributes:
        flow: of its chunks, whichever sequence they are of: tritonserver mixes up outputs of an ensemble's responses
            that are on their way together. None if nobody acknowledges them.
        slot: its row in the acknowledgement table.
        secret: what the row knows its chunks by.
        paused: its reader is behind, and the loop was told so.
        aborted: the loop was told that nobody wants it any more.
        is_closed: its final response has been sent, or is being sent.
    """

    def __init__(self, request: Request, responder: Responder, settings: CoreSettings) -> None:
        output = request.output
        echoed = request.first.token_ids[: request.first.num_prompt_tokens] if output.echo else []
        self.request = request
        self.responder = responder
        self.aborted = False
        self.error: TridentError | None = None
        self.flow = FlowControl(settings) if output.streaming and output.flow_control else None
        self.slot, self.secret = 0, 0
        self.paused = False
        self.is_closed = False
        #: AnsweringThread whose last response has not left.
        self.streams = [
            Stream(
                sequence,
                self,
                len(echoed),
                token_ids=list(echoed),
            )
            for sequence in request.sequences
        ]

    @property
    def next(self) -> Stream | None:
        """The stream that has something to send and whose turn it is."""
        return next((stream for stream in self.streams if stream.is_held), None)

    def had_its_turn(self, stream: Stream) -> None:
        """The others go first."""
        self.streams.remove(stream)
        self.streams.append(stream)

    @property
    def has_ended(self) -> bool:
        """Whether all its sequences have."""
        return all(stream.ended for stream in self.streams)
