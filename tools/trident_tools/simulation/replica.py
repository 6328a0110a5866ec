"""One core under simulated time.

Owns the scheduler, the KV cache and the admission of a real core, and passes them simulated times. Requests reach the
scheduler between two steps, as in the real loop. Never knows of other replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.engine.protocol import EngineSpec
from trident_backend.kv.cache import make_kv_cache
from trident_backend.metrics.records import request_record
from trident_backend.scheduling.scheduler import Scheduler
from trident_backend.sequences.choices import Choices
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize, StepTimeModel
from trident_backend.sequences.steps import SchedulerOutput
from trident_backend.serving.admission import Admission
from trident_ensemble.contract.errors import QueueFullError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings
from trident_tools.simulation.arrivals import Arrival, CountingWindow
from trident_tools.simulation.measurements import CoreState, Measurements
from trident_tools.simulation.step_cost import StepCost
from trident_tools.simulation.workload import Workload


@dataclass(frozen=True)
class Deployment:
    """A deployment that is simulated.

    Args:
        spec: the limits of each replica's engine; its vocabulary does not matter.
        settings: the settings of each replica's core.
        cost: the cost of a step.
        num_replicas: number of cores.
    """

    spec: EngineSpec
    settings: CoreSettings
    cost: StepCost
    num_replicas: int = 1


class UnreadStepTimes(StepTimeModel):
    """A step-time model that learns nothing, because for a small step learning is most of the simulation's cost."""

    def observe(self, size: StepSize, seconds: float) -> None:
        """Ignore the time of a step."""


@dataclass(frozen=True)
class _Step:
    output: SchedulerOutput
    seconds: float
    state: CoreState


class Replica:
    """One core of a deployment under simulated time.

    Args:
        deployment: the deployment that the replica belongs to.
        workload: the workload whose requests arrive.
        window: the window in which steps and requests count.
        measurements: the measurements to which steps and requests are added.
    """

    def __init__(
        self, deployment: Deployment, workload: Workload, window: CountingWindow, measurements: Measurements
    ) -> None:
        spec, settings = deployment.spec, deployment.settings
        self._spec = spec
        self._cost = deployment.cost
        self._prefix = [0] * workload.shared_prefix
        self._overhead = workload.overhead
        self._window = window
        self._measurements = measurements
        # Prompts without a shared prefix find nothing, except that a preempted sequence finds its own blocks.
        preempts = settings.batch_scheduler_policy is BatchSchedulerPolicy.MAX_UTILIZATION
        self._reuse = settings.enable_kv_cache_reuse and (workload.shared_prefix > 0 or preempts)
        self._kv_cache = make_kv_cache(spec, reuse=self._reuse)
        # Only the latency budget reads step times, because there are no deadlines and no draft tokens here.
        step_times = StepTimeModel() if settings.target_itl_ms else UnreadStepTimes()
        num_tokens = settings.token_budget or spec.max_num_tokens
        self._scheduler = Scheduler(self._kv_cache, spec.max_num_seqs, num_tokens, settings, step_times)
        self._admission = Admission(spec, settings)
        self._inbox: list[Sequence] = []
        self._arrivals: dict[int, Arrival] = {}
        self._step: _Step | None = None

    @property
    def num_open(self) -> int:
        """Number of requests without an answer."""
        return self._admission.num_requests

    @property
    def busy(self) -> bool:
        """Whether a step is being computed."""
        return self._step is not None

    def offer(self, arrival: Arrival) -> bool:
        """Take a request; False if it is refused."""
        request = arrival.request
        num_tokens = request.num_input_tokens + request.num_output_tokens
        if num_tokens > self._spec.max_seq_len or not self._kv_cache.fits(num_tokens):
            return False
        try:
            self._admission.enter(request.num_input_tokens)
        except QueueFullError:
            return False
        # No two prompts agree beyond the prefix, whose ids are 0.
        own = [request.number + 1] * (request.num_input_tokens - len(self._prefix))
        self._inbox.append(
            Sequence(
                sequence_id=request.number,
                token_ids=self._prefix + own,
                num_prompt_tokens=request.num_input_tokens,
                max_tokens=request.num_output_tokens,
                sampling=_GREEDY,
                end_ids=_NO_IDS,
                arrived_at=arrival.at,
                reuse_cache=self._reuse,
            )
        )
        self._arrivals[request.number] = arrival
        return True

    def begin(self, now: float) -> float | None:
        """Start a step; return when it will end, or None if there is nothing to do."""
        for sequence in self._inbox:
            self._measurements.waiting_seconds += self._window.overlap(sequence.arrived_at, now)
            self._scheduler.add(sequence, now)
        self._inbox.clear()
        output = self._scheduler.schedule(now)
        if not output.chunks:
            assert not self._arrivals, "whatever fits into an empty cache can run"
            return None
        seconds = self._cost.seconds(output)
        state = CoreState(
            began=now,
            num_tokens=output.num_tokens,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            kv_share=self._kv_cache.num_used / self._kv_cache.num_blocks,
        )
        self._step = _Step(output, seconds, state)
        return now + seconds

    def end(self, now: float) -> list[Arrival]:
        """End the step; return the requests that ended with it."""
        step, self._step = self._step, None
        assert step is not None
        token_ids = [0] * step.output.size.num_rows
        advances = self._scheduler.update(step.output, Choices(token_ids), now, step.seconds)
        self._measurements.add_step(self._window, now, step.state, advances)
        return [self._close(sequence, now) for sequence in self._scheduler.take_ended()]

    def _close(self, sequence: Sequence, now: float) -> Arrival:
        self._admission.leave(sequence.num_prompt_tokens)
        arrival = self._arrivals.pop(sequence.sequence_id)
        record = request_record(sequence, now)
        self._measurements.add_request(self._window, arrival.sent_at, self._overhead, now, record)
        return arrival


_GREEDY = SamplingParams()
_NO_IDS: frozenset[int] = frozenset()
