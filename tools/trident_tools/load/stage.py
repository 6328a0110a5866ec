"""One stage of a load: users come, are measured for a while, and finish what they began.

Owns the course of a stage on locust's runner, and the moments between which it is measured. Import it in a process that
locust has patched. Never computes a figure.
"""

from __future__ import annotations

import datetime
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import numpy as np
from locust.env import Environment
from locust.runners import LocalRunner

from trident_tools.load.client_records import UNFINISHED
from trident_tools.load.loads import ClosedLoop, Load, Timing
from trident_tools.load.prompts import Prompt
from trident_tools.load.scrape import Snapshot, difference, read_page
from trident_tools.load.stage_progress import StageProgress, all_streams, recent
from trident_tools.load.stage_result import StageResult
from trident_tools.load.statistics import MeasuredWindow
from trident_tools.load.target import Service
from trident_tools.load.users import Sender, closed_loop_user, open_loop_user


class StageRunner:
    """Runs the stages of one load, one after another.

    Args:
        service: the server.
        prompts: the prompts of all stages, taken in order.
        timing: the timing of every stage.
        metrics_url: the URL of the server's metrics page; None to read none.
        show: is called with the progress of a stage.
        interrupted: ends the stage when it is set.
    """

    def __init__(
        self,
        service: Service,
        prompts: Iterator[Prompt],
        timing: Timing,
        *,
        metrics_url: str | None,
        show: Callable[[StageProgress], None],
        interrupted: gevent.event.Event,
    ) -> None:
        self._service = service
        self._prompts = prompts
        self._timing = timing
        self._metrics_url = metrics_url
        self._show = show
        self._interrupted = interrupted

    def run(self, load: Load, random: np.random.Generator) -> StageResult:
        """Run one stage to its end.

        Args:
            load: the load of the stage.
            random: draws the arrivals of an open loop.
        """
        course = _Course(Sender(self._service, self._prompts), load, random, self._timing)
        began, started_at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), _now()
        reporter = gevent.spawn(self._report, course, started_at)
        try:
            if self._timing.ramp:
                course.spawn_users()
                self._interrupted.wait(self._timing.ramp)
                course.await_spawned(self._interrupted)
            course.phase = "measuring"
            before, used, begin = self._scrape(), _cpu_seconds(), _now()
            if not self._timing.ramp:
                course.spawn_users()
            self._interrupted.wait(self._timing.duration)
            window = MeasuredWindow(begin, _now())
            cpu_share = (_cpu_seconds() - used) / max(window.seconds, 1e-9)
            course.phase = "finishing"
            after = self._scrape()
            course.finish(self._interrupted)
        finally:
            reporter.kill()
            course.kill()
        interrupted = self._interrupted.is_set()
        return StageResult(
            load=load,
            began=began,
            started_at=started_at,
            window=window,
            records=tuple(
                record for record in course.sender.records if not (interrupted and record.error == UNFINISHED)
            ),
            server=difference(before, after) if before is not None and after is not None else None,
            cpu_share=cpu_share,
            interrupted=interrupted,
        )

    def _scrape(self) -> Snapshot | None:
        if self._metrics_url is None:
            return None
        try:
            return read_page(self._metrics_url)
        except OSError:
            return None  # it answered before the first stage; a stage without it is better than none

    def _report(self, course: _Course, started_at: float) -> None:
        since, num_done, num_errors = started_at, 0, 0
        while True:
            gevent.sleep(self._timing.report)
            now, ended = _now(), course.take_ended()
            num_done += sum(well for _, well in ended)
            num_errors += sum(not well for _, well in ended)
            running = course.sender.running
            first_token, token, tokens_per_s = recent(all_streams(running, ended), since, now)
            self._show(
                StageProgress(
                    phase=course.phase,
                    elapsed=now - started_at,
                    num_users=course.num_users,
                    num_running=len(running),
                    num_done=num_done,
                    num_errors=num_errors,
                    first_token=first_token,
                    token=token,
                    tokens_per_s=tokens_per_s,
                )
            )
            since = now


class _Course:
    """The part of locust in a stage."""

    def __init__(self, sender: Sender, load: Load, random: np.random.Generator, timing: Timing) -> None:
        self.sender = sender
        self.phase = "ramp"
        self._load = load
        self._timing = timing
        user = closed_loop_user(sender) if isinstance(load, ClosedLoop) else open_loop_user(sender, load.rate, random)
        self._environment = Environment(user_classes=[user], stop_timeout=timing.grace)
        self._environment.events.cpu_warning.add_listener(_silence)  # type: ignore[no-untyped-call]
        self._runner: LocalRunner = self._environment.create_local_runner()
        self._stopping: gevent.Greenlet | None = None

    @property
    def num_users(self) -> int | None:
        """How many users have been spawned; None in an open loop."""
        return self._runner.user_count if isinstance(self._load, ClosedLoop) else None

    def take_ended(self) -> list[tuple[Any, bool]]:
        """Return the streams that ended since the last call, and whether they ended well."""
        ended, self.sender.ended = self.sender.ended, []
        return ended

    def spawn_users(self) -> None:
        """Begin to spawn users; return at once."""
        count = self._load.num_users if isinstance(self._load, ClosedLoop) else 1
        self._runner.start(count, count / self._timing.ramp if self._timing.ramp else count)

    def await_spawned(self, interrupted: gevent.event.Event) -> None:
        """Wait until all users are spawned, which locust does in steps of a second."""
        gevent.wait([self._runner.spawning_greenlet, interrupted], count=1)

    def finish(self, interrupted: gevent.event.Event) -> None:
        """Send nothing new; let requests that were sent end within the grace, unless interrupted."""
        self.sender.closing.set()
        self._stopping = gevent.spawn(self._runner.stop)
        gevent.wait([self._stopping, interrupted], count=1)

    def kill(self) -> None:
        """End every user at once."""
        self.sender.closing.set()
        if self._stopping is not None:
            self._stopping.kill()
        self._runner.user_greenlets.kill()
        self._runner.quit()


def _silence(environment: Environment, **_: Any) -> None:
    """Keep locust from logging a warning about the use of the CPU, which the report mentions."""
    assert environment.runner is not None
    environment.runner.cpu_warning_emitted = True


def _now() -> float:
    return time.perf_counter()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
