"""Steps of a few hundred tokens, captured as CUDA graphs: a step is two launches, one of its body and one of its head.

Owns which sizes there are, and the graphs. Never captures anything once the engine has loaded, and never replays what
did not compute, bit for bit, what the launches themselves do.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from trident_backend.engine.cuda.runner import ProgramRunner
from trident_backend.engine.cuda.trial import Body, Head, Trial
from trident_backend.engine.cuda.trial_steps import TrialSteps, spread_rows
from trident_backend.engine.gpu.device import Device, DeviceMemoryError
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.step_inputs import StepGrids, StepInputBuffer
from trident_backend.engine.protocol import StepBatch
from trident_ensemble.contract.errors import EngineError

Key = TypeVar("Key")

#: Tokens, or rows of logits, that steps are padded to: few enough to capture each, and close enough to waste little.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Return the sizes of steps of at most so many tokens; what is larger than the last is not padded."""
    sizes = tuple(size for size in _SIZES if size < most)
    return (*sizes, most) if most <= _SIZES[-1] else sizes


class StepGraphs:
    """Runs bodies and heads, as graphs where they are captured.

    Args:
        device: where.
        runner: of the program.
        inputs: of steps, which know how much attention a size has at most.
        num_kinds: of attention.
        trial: holds what was captured against the launches themselves.
        steps: for the trial.

    Raises:
        EngineError: the device failed.
    """

    def __init__(
        self,
        device: Device,
        *,
        runner: ProgramRunner,
        inputs: StepInputBuffer,
        num_kinds: int,
        trial: Trial,
        steps: TrialSteps,
    ) -> None:
        self._device = device
        self._runner = runner
        self._inputs = inputs
        self._num_kinds = num_kinds
        self._trial = trial
        self._steps = steps
        self._sizes = sizes_up_to(steps.spec.max_num_tokens)
        #: By the number of tokens, and whether there are large tiles.
        self._bodies: dict[tuple[int, bool], Any] = {}
        #: By the number of rows.
        self._heads: dict[int, Any] = {}
        with freed_on_failure() as stack:
            stack.callback(self.close)
            self._capture_all()

    def padded(self, count: int) -> int:
        """Return the tokens, or rows, that so many are padded to; none stay none, and many are not padded."""
        place = bisect.bisect_left(self._sizes, count)
        return self._sizes[place] if count and place < len(self._sizes) else count

    def run_body(self, num_tokens: int, grids: StepGrids) -> None:
        """Enqueue the body of a step.

        Args:
            num_tokens: as many as it is padded to.
            grids: the attention that it has.
        """
        graph = self._bodies.get((num_tokens, grids.has_many))
        if graph is None:
            self._runner.enqueue_body(num_tokens, grids)
        else:
            self._device.launch(graph)

    def run_head(self, num_rows: int) -> None:
        """Enqueue the head of a step.

        Args:
            num_rows: as many as they are padded to, at least one.
        """
        graph = self._heads.get(num_rows)
        if graph is None:
            self._runner.enqueue_head(num_rows)
        else:
            self._device.launch(graph)

    def close(self) -> None:
        """Free the graphs."""
        for graphs in (self._bodies, self._heads):
            while graphs:
                self._device.free_graph(graphs.popitem()[1])

    def _capture_all(self) -> None:
        log, began = logging.getLogger(__name__), time.monotonic()
        # The smallest first: where memory runs out, steps that generate have graphs.
        for size in self._sizes:
            try:
                self._capture(size)
            except _CaptureError as error:
                log.warning("not all steps of %d or more tokens have a CUDA graph: %s", size, error)
                break
        num_graphs = len(self._bodies) + len(self._heads)
        log.info("captured %d CUDA graphs in %.1f s", num_graphs, time.monotonic() - began)

    def _capture(self, size: int) -> None:
        """Capture what there is of one size: its bodies, and with the first of them the head."""
        previous = max((other for other in self._sizes if other < size), default=0)
        with_prompt = self._steps.with_prompt(size)
        # More tokens than the size before has cannot all be in small tiles if there are too few sequences.
        without = self._steps.without_prompt(size) if previous < self._steps.max_few_tokens else None
        first = with_prompt or without
        if first is not None:
            rows = spread_rows(len(first.token_ids), size)
            self._capture_step(replace(first, logit_rows=rows), size, has_many=first is with_prompt, with_head=True)
        if with_prompt is not None and without is not None:
            self._capture_step(without, size, has_many=False, with_head=False)

    def _capture_step(self, batch: StepBatch, size: int, *, has_many: bool, with_head: bool) -> None:
        """Capture a body, and the head of all of the step's rows, and keep what computes the same as the launches."""
        most, num_rows = self._grids(size, has_many=has_many), len(batch.logit_rows)

        def direct_body(grids: StepGrids) -> None:
            self._runner.enqueue_body(size, grids)

        def direct_head() -> None:
            self._runner.enqueue_head(num_rows)

        expected = self._trial.digest_of(batch, size, direct_body, direct_head)
        with freed_on_failure() as stack:
            captured_body = self._captured(lambda: direct_body(most), stack)
            captured_head = self._captured(direct_head, stack) if with_head else None

            def body(_: StepGrids) -> None:
                self._device.launch(captured_body)

            def head() -> None:
                self._device.launch(captured_head)

            def is_right(body: Body, head: Head) -> bool:
                return expected == self._replayed(batch, size, body, head)

            is_body_right = is_head_right = is_right(body, head if with_head else direct_head)
            if not is_body_right and with_head:
                is_body_right, is_head_right = is_right(body, direct_head), is_right(direct_body, head)
        self._keep(self._bodies, (size, has_many), captured_body, f"the body of {size} tokens", is_right=is_body_right)
        if with_head:
            self._keep(self._heads, size, captured_head, f"the head of {size} rows", is_right=is_head_right)

    def _captured(self, enqueue: Callable[[], None], stack: ExitStack) -> Any:
        """Return the graph of what is enqueued, which the stack frees."""
        try:
            graph = self._device.capture(enqueue)
        except EngineError as error:
            raise self._survived(error) from None
        stack.callback(self._device.free_graph, graph)
        return graph

    def _replayed(self, batch: StepBatch, size: int, body: Body, head: Head) -> bytes:
        """Return the digest of a step's logits; the first launch of a graph may need memory that there is not."""
        try:
            return self._trial.digest_of(batch, size, body, head)
        except DeviceMemoryError as error:
            raise self._survived(error) from None

    def _survived(self, error: EngineError) -> EngineError:
        """Wait for what was enqueued before, and return what the engine can go on after; the error of a lost GPU."""
        try:
            self._device.synchronize()
        except EngineError:
            return error
        return _CaptureError(str(error))

    def _keep(self, graphs: dict[Key, Any], key: Key, graph: Any, what: str, *, is_right: bool) -> None:
        if is_right:
            graphs[key] = graph
            return
        log = logging.getLogger(__name__)
        log.warning("%s is launched kernel by kernel: its CUDA graph does not compute the same logits", what)
        self._device.free_graph(graph)

    def _grids(self, num_tokens: int, *, has_many: bool) -> StepGrids:
        """Return the most attention of any step of so many tokens, or of any without large tiles."""
        bounds = [self._inputs.bounds(kind, num_tokens) for kind in range(self._num_kinds)]
        return StepGrids(
            few=tuple(most.few for most in bounds),
            many=tuple(most.many * has_many for most in bounds),
            merges_few=tuple(most.merges_few for most in bounds),
            merges_many=tuple(most.merges_many * has_many for most in bounds),
        )


class _CaptureError(EngineError):
    """A capture, or its trial, that failed, and the engine goes on without."""
