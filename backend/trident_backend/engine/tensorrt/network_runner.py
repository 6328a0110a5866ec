"""The calls of a network, each with its shapes and addresses.

Owns which shapes and addresses a call is given. Never owns memory and never decides the order of calls: the engine asks
for one after another.
"""

from __future__ import annotations

from trident_backend.engine.tensorrt.input_buffer import InputBuffer
from trident_backend.engine.tensorrt.logits_buffer import LogitsBuffer
from trident_backend.engine.tensorrt.names import (
    CONTEXT_LENS,
    DECODE_PROFILE,
    INPUTS,
    LOGIT_ROWS,
    LOGITS,
    PAST_LENS,
    POSITION_IDS,
    PREFILL_PROFILE,
    TOKEN_IDS,
)
from trident_backend.engine.tensorrt.network_layout import NetworkLayout
from trident_backend.engine.tensorrt.plan import Plan, Shape
from trident_backend.engine.tensorrt.slot_pool import SlotPool
from trident_backend.engine.tensorrt.step_inputs import NetworkCall, StepCalls, idle_inputs


class NetworkRunner:
    """Runs calls of a plan on the engine's memory.

    Args:
        plan: the network.
        layout: of it.
        slots: the KV cache.
        inputs: where the small inputs lie.
        logits: where the results go.
    """

    def __init__(
        self, plan: Plan, layout: NetworkLayout, slots: SlotPool, inputs: InputBuffer, logits: LogitsBuffer
    ) -> None:
        self.layout = layout
        self.slots = slots
        self.inputs = inputs
        self.logits = logits
        self._plan = plan

    def bind_decode(self, num_seqs: int) -> tuple[dict[str, Shape], dict[str, int]]:
        """Return the shapes and addresses of a decode call over the first `num_seqs` slots."""
        shapes = {
            TOKEN_IDS: (num_seqs, 1),
            POSITION_IDS: (num_seqs, 1),
            **dict.fromkeys((PAST_LENS, CONTEXT_LENS, LOGIT_ROWS), (num_seqs,)),
            **self._cache_shapes(num_seqs),
        }
        addresses = {**self.inputs.decode_addresses, **self.slots.addresses(0), LOGITS: self.logits.address}
        return shapes, addresses

    def run_prefill(self, call: NetworkCall, inputs: dict[str, int]) -> None:
        """Enqueue the computation of one sequence's chunk.

        Args:
            call: of one sequence.
            inputs: where its inputs lie.
        """
        shapes = {**{name: call.inputs[name].shape for name in INPUTS}, **self._cache_shapes(1)}
        logits = self.logits.address_for(call.first_row)
        addresses = {**inputs, **self.slots.addresses(call.first_slot), LOGITS: logits}
        self._plan.run(shapes, addresses, profile=PREFILL_PROFILE)
        self.logits.settle(call.first_row, call.num_rows)

    def warm_up(self, num_slots: int) -> None:
        """Enqueue one call of each kind, which changes nothing, and leave the inputs of a decode call in place.

        What TensorRT does at a context's first run is done then, and what fails, fails while the engine loads.
        """
        idle = NetworkCall(idle_inputs(num_slots, self.layout.slot_len), 0, 0, 0)
        chunk = NetworkCall(idle_inputs(1, self.layout.slot_len), 0, 0, 0)
        (addresses,) = self.inputs.upload(StepCalls(idle, (chunk,), chunk.inputs[LOGIT_ROWS]))
        self._plan.run(*self.bind_decode(num_slots), profile=DECODE_PROFILE)
        self.run_prefill(chunk, addresses)

    def _cache_shapes(self, num_seqs: int) -> dict[str, Shape]:
        return {
            name: (num_seqs, slot.num_heads, slot.slot_len, slot.head_dim) for name, slot in self.layout.caches.items()
        }
