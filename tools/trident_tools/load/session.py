"""A whole load: the server is found, every stage is run and measured.

Owns the order of things and Ctrl-C. Never prints or writes a file. To be imported in a process that locust may patch:
importing this module, and nothing before it, brings gevent in.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from urllib.parse import urlsplit

import gevent
import gevent.event
import numpy as np

from trident_tools.load.load_plan import LoadPlan
from trident_tools.load.loads import Load
from trident_tools.load.prompts import make_prompts
from trident_tools.load.scrape import read_page
from trident_tools.load.stage import StageRunner
from trident_tools.load.stage_progress import StageProgress
from trident_tools.load.stage_result import StageResult
from trident_tools.load.statistics import StageFigures, measure
from trident_tools.load.target import open_service
from trident_tools.load.text_maker import TextMaker

_METRICS_PORT = 8002


class Session:
    """One load on one server.

    Args:
        plan: of it.

    Raises:
        ServerError: the server does not answer, or does not serve what is asked of it.
    """

    def __init__(self, plan: LoadPlan) -> None:
        # Locust tells of its users' coming and going; progress says it already.
        logging.getLogger("locust").setLevel(logging.ERROR)
        self._plan = plan
        self._service = open_service(plan.target)
        self.notes: list[str] = []
        texts = TextMaker(plan.tokenizer)
        if not texts.is_exact and (plan.prompts.shared_prefix or not plan.prompts.written):
            self.notes.append(
                "without --tokenizer a word is taken for a token: input lengths are about those asked for"
            )
        self._prompts = make_prompts(plan.prompts, texts)
        self._metrics_url = self._find_metrics()

    @property
    def model(self) -> str:
        """That is asked."""
        return self._service.model

    def close(self) -> None:
        """Let go of the server."""
        self._service.close()

    def run(
        self,
        begins: Callable[[Load], None],
        show: Callable[[StageProgress], None],
        ends: Callable[[StageResult, StageFigures], None],
    ) -> tuple[tuple[StageResult, StageFigures], ...]:
        """Every stage, in order; after Ctrl-C, those until then.

        Args:
            begins: takes the load of a stage that begins.
            show: takes its progress.
            ends: takes its outcome.
        """
        plan, interrupted = self._plan, gevent.event.Event()
        handler = gevent.signal_handler(signal.SIGINT, interrupted.set)
        runner = StageRunner(
            self._service, self._prompts, plan.timing, metrics_url=self._metrics_url, show=show, interrupted=interrupted
        )
        outcomes: list[tuple[StageResult, StageFigures]] = []
        try:
            for number, load in enumerate(plan.loads):
                if interrupted.is_set():
                    break
                begins(load)
                result = runner.run(load, np.random.default_rng([plan.prompts.seed, 1, number]))
                figures = measure(result.records, result.started_at, result.window, plan.objectives)
                outcomes.append((result, figures))
                ends(result, figures)
        finally:
            handler.cancel()
        return tuple(outcomes)

    def _find_metrics(self) -> str | None:
        """The metrics page, if it answers; otherwise a note."""
        url = self._plan.metrics_url
        if url is None and self._plan.target.protocol == "openai":
            return None
        if url is None:
            target = self._plan.target.url
            host = urlsplit(target if "//" in target else f"//{target}").hostname or "localhost"
            url = f"http://{f'[{host}]' if ':' in host else host}:{_METRICS_PORT}/metrics"
        try:
            read_page(url)
        except OSError as error:
            self.notes.append(f"no metrics page at {url} ({error}): the server's own counts are left out")
            return None
        return url
