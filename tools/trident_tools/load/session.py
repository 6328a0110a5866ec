"""A whole load: the server is found, and every stage is run and measured.

Owns the order of these steps, and Ctrl-C. Import it in a process that locust may patch: importing this module, and
nothing before it, brings in gevent. Never prints, and never writes a file.
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
        plan: the plan of the load.

    Raises:
        ServerError: the server does not answer, or does not serve the model.
    """

    def __init__(self, plan: LoadPlan) -> None:
        # Locust logs how many users run, which progress says already.
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
        """The model that is asked."""
        return self._service.model

    def close(self) -> None:
        """Close the connections to the server."""
        self._service.close()

    def run(
        self,
        begins: Callable[[Load], None],
        show: Callable[[StageProgress], None],
        ends: Callable[[StageResult, StageFigures], None],
    ) -> tuple[tuple[StageResult, StageFigures], ...]:
        """Run every stage in order; return their courses and figures, after Ctrl-C of the stages until then.

        Args:
            begins: is called with the load of a stage that begins.
            show: is called with its progress.
            ends: is called with its course and figures.
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
        """Return the URL of the metrics page, or None, with a note, if it does not answer."""
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
