"""The cost of a step on hardware that has not been measured.

Owns the roofline (Williams et al., "Roofline: an insightful visual performance model", CACM 2009): each part of a step
takes as long as its memory traffic or as its arithmetic, whichever is longer, at the share of the hardware's numbers
that kernels reach. The linear layers read their weights once a step and compute every token, experts those that have
chosen them; attention reads the keys and values of each sequence's context once a step and visits every pair of a query
and a key. Activations are left out. Never measures anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.sequences.steps import ScheduledChunk, SchedulerOutput
from trident_tools.simulation.model_shape import ModelShape


@dataclass(frozen=True)
class RooflineCost:
    """The cost of a step by the roofline.

    Args:
        shape: the shape of the network.
        bandwidth: bytes per second that kernels reach.
        flops: floating-point operations per second that kernels reach.
        step_overhead: seconds of every step for scheduling, sampling and starting kernels.
    """

    shape: ModelShape
    bandwidth: float
    flops: float
    step_overhead: float

    def seconds(self, output: SchedulerOutput) -> float:
        """Return the seconds that a step takes."""
        return self.step_overhead + self._linear(output) + self._attention(output)

    def _linear(self, output: SchedulerOutput) -> float:
        shape = self.shape
        num_products = shape.layer_weights * output.num_tokens + shape.head_weights * output.size.num_rows
        num_bytes = shape.read_bytes(output.num_tokens) + shape.head_bytes
        return max(2 * num_products / self.flops, num_bytes / self.bandwidth)

    def _attention(self, output: SchedulerOutput) -> float:
        num_pairs, num_read = 0, 0
        for window, num_layers in self.shape.windows:
            pairs, read = _visited(output, window)
            num_pairs += num_layers * pairs
            num_read += num_layers * read
        # A product with the keys and one with the values.
        num_flops = 4 * self.shape.num_query_values * num_pairs
        num_bytes = self.shape.kv_bytes * (num_read + self.shape.num_layers * output.num_tokens)
        return max(num_flops / self.flops, num_bytes / self.bandwidth)


def _visited(output: SchedulerOutput, window: int | None) -> tuple[int, int]:
    """Return the pairs of a query and a key, and the keys read, in a layer whose window has this many tokens."""
    if window is None:
        size = output.size
        if size.num_tokens == len(output.chunks):
            return size.num_pairs, size.num_pairs  # one query a sequence visits each key once
        return size.num_pairs, sum(chunk.sequence.num_computed_tokens + chunk.num_new_tokens for chunk in output.chunks)
    pairs, read = 0, 0
    for chunk in output.chunks:
        pairs += _pairs_in_window(chunk, window)
        read += min(chunk.sequence.num_computed_tokens, window - 1) + chunk.num_new_tokens
    return pairs, read


def _pairs_in_window(chunk: ScheduledChunk, window: int) -> int:
    """Return the pairs of a chunk whose queries see themselves and earlier tokens, at most `window` in all."""
    past, new = chunk.sequence.num_computed_tokens, chunk.num_new_tokens
    # The first `rising` queries see every earlier token, the others see the window.
    rising = min(new, max(0, window - past))
    return rising * past + rising * (rising + 1) // 2 + (new - rising) * window
