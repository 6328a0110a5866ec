"""A mixture of experts as launches of kernels of our own.

Owns the order of its launches and the values between them. Pairs of a token and one of its experts are ordered by
expert on the device, and a value of pairs is one of tokens that is as many times wide. Never computes an expert for a
token that has not chosen it.
"""

from __future__ import annotations

from trident_backend.engine.gpu.program import Argument, Count
from trident_compiler.cuda.builder import LaunchMaker, value
from trident_compiler.cuda.expert_kernels import combine_launch, expert_launches, group_launch, route_launch
from trident_compiler.cuda.operations import Target
from trident_compiler.cuda.stored_weights import StoredWeights
from trident_compiler.cuda.tensors import Tensor
from trident_compiler.families.words import Experts, Gating, Routing
from trident_compiler.weights.weights import Weight


class CudaExperts:
    """The mixtures of one program.

    Args:
        make: takes their launches.
        target: what they are written for.
        weights: of the program.
    """

    def __init__(self, make: LaunchMaker, target: Target, weights: StoredWeights) -> None:
        self._make = make
        self._target = target
        self._weights = weights

    def mix(self, x: Tensor, logits: Tensor, routing: Routing, experts: Experts, gating: Gating[Tensor]) -> Tensor:
        """Return the weighted sum of chosen experts' outputs, `[rows, hidden]`, as `Ops.experts`."""
        make, target, num_chosen = self._make, self._target, routing.num_chosen
        chosen, order = (self._new(num_chosen, "i32") for _ in range(2))
        shares = self._new(num_chosen, "fp32")
        counts = value(make.value(routing.num_experts, "i32", Count.ONE))
        bias = self._weights.vector(routing.choice_bias)
        route_launch(make, routing, logits.at, chosen, shares, dtype=logits.dtype, bias=bias)
        group_launch(make, routing, chosen, order, counts)

        def product(of: Tensor, weight: Weight, bias: Weight | None, *, is_shared: bool) -> Tensor:
            """Return `[rows, chosen * out]`."""
            stored = self._weights.matrix(weight)
            width = num_chosen * stored.matrix.out_size
            out = Tensor(self._new(width, target.compute), width, target.compute, make.counted)
            expert_launches(
                make,
                stored.matrix,
                of.at,
                stored.values,
                out.at,
                num_chosen=num_chosen,
                order=order,
                counts=counts,
                x_is_shared=is_shared,
                compute=target.compute,
                capability=target.capability,
                max_rows=target.max_rows,
                scales=stored.scales,
                bias=self._weights.vector(bias),
            )
            return out

        gate = product(x, experts.gate, experts.gate_bias, is_shared=True)
        up = product(x, experts.up, experts.up_bias, is_shared=True)
        outputs = product(gating(gate, up), experts.down, experts.down_bias, is_shared=False)
        hidden = experts.down.shape[1]
        out = Tensor(self._new(hidden, target.compute), hidden, target.compute, make.counted)
        combine_launch(make, outputs.at, shares, out.at, num_chosen=num_chosen, width=hidden, dtype=target.compute)
        return out

    def _new(self, width: int, dtype: str) -> Argument:
        return value(self._make.value(width, dtype, self._make.counted))
