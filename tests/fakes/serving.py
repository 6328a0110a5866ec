"""A whole core on a mock engine, for tests that ask it things."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.fakes.core import SPEC
from trident_backend.engine.protocol import Engine, EngineSpec
from trident_backend.requests.request import RequestContext
from trident_backend.sequences.guide import MASK_WORD, Masks
from trident_backend.sequences.stop_strings import StopStrings
from trident_backend.serving.service import CoreService
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.manifest import Generation
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.draining import DrainNotice
from trident_ensemble.text.special_tokens import SpecialTokens

NO_DEFAULTS = Generation(end_ids=(), temperature=0.0, top_k=0, top_p=1.0)


class Letters:
    """A detokenizer of three letters a token, none of which holds anything back."""

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        return "".join(spell(token_id) for token_id in new_ids)


def spell(token_id: int) -> str:
    """Of one token: all texts differ, and each can be the end of one and the beginning of another."""
    return "".join("abcde"[token_id // scale % 5] for scale in (25, 5, 1))


class Speller:
    """Spells the tokens of `Letters`, without their first letter at the beginning of a text; token 0 is special."""

    def of(self, token_id: int, *, begins: bool) -> bytes:
        return spell(token_id)[begins:].encode()

    def is_special(self, token_id: int) -> bool:
        return token_id == 0


def context(spec: EngineSpec = SPEC, defaults: Generation = NO_DEFAULTS) -> RequestContext:
    anchors = bytes([1]) * spec.vocab_size

    def stop_strings(
        words: tuple[str, ...],
        *,
        echoed_ids: Sequence[int],
        min_tokens: int,
        include_stop: bool,
        skip_special_tokens: bool,
        markers: SpecialTokens,
    ) -> StopStrings:
        return StopStrings(
            Letters(),
            anchors,
            words,
            echoed_ids=echoed_ids,
            min_tokens=min_tokens,
            include_stop=include_stop,
            skip_special_tokens=skip_special_tokens,
            markers=markers,
        )

    return RequestContext(spec, defaults, stop_strings, Speller())


class CountdownGuide:
    """Complete after so many tokens, any at all."""

    failure = None

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    @property
    def is_finished(self) -> bool:
        return self.num_left <= 0

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        assert masks.shape == (1 + len(draft_ids), -(-SPEC.vocab_size // MASK_WORD))
        masks[:] = 2**MASK_WORD - 1

    def advance(self, token_id: int) -> None:
        assert self.num_left > 0
        self.num_left -= 1


class _Countdown:
    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def start(self, end_ids: frozenset[int], *, begins_text: bool) -> CountdownGuide:
        return CountdownGuide(self._num_tokens)


class Guides:
    """Compiles numbers, when `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.num_begun = 0

    def compile(self, guide_type: str, guide: str) -> _Countdown:
        self.num_begun += 1
        assert self.gate.wait(60)
        if guide == "crash":
            raise RuntimeError("out of the blue")
        if not guide.isdigit():
            raise RequestError("guided_decoding_guide", f"{guide!r} is no number")
        return _Countdown(int(guide))


def make_service(
    engine: Engine,
    settings: CoreSettings | None = None,
    notice: DrainNotice | None = None,
    *,
    guides: Guides | None = None,
    defaults: Generation = NO_DEFAULTS,
    on_fatal: Callable[[BaseException], None],
) -> CoreService:
    return CoreService(
        engine,
        context(engine.spec, defaults),
        bytes([1]) * engine.spec.vocab_size,
        settings or CoreSettings(),
        guides=guides or Guides(),
        notice=notice or DrainNotice(None),
        on_fatal=on_fatal,
    )


@contextmanager
def serving(
    engine: Engine,
    settings: CoreSettings | None = None,
    notice: DrainNotice | None = None,
    *,
    guides: Guides | None = None,
    defaults: Generation = NO_DEFAULTS,
) -> Iterator[CoreService]:
    died: list[BaseException] = []
    service = make_service(engine, settings, notice, guides=guides, defaults=defaults, on_fatal=died.append)
    try:
        yield service
    finally:
        if not died:
            service.stop()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
