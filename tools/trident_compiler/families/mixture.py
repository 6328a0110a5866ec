"""Decoders whose feed-forwards are mixtures of experts.

Owns the configuration and the feed-forward that such families share: the router, the chosen experts, the experts that
all tokens share, and which layers have none of these. Never reads a configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.decoder_config import cut, refuse_other
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Parts
from trident_compiler.families.sequential import SequentialConfig, feed_forward, layers_of, self_attention
from trident_compiler.families.words import Activation, Experts, Gating, Routing, Scoring
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import TensorPart


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(SequentialConfig):
    """A decoder with mixtures of experts.

    Args:
        routing: how a token's experts are chosen; of the layer's own bias nothing is said.
        expert_size: inner features of an expert.
        is_sparse: for each layer, whether it has experts; the others have a feed-forward of `intermediate_size`.
        block: the name of the module that has the router and the experts.
        router: the name of the router.
        choice_bias: the name of the router's bias on the choice, within its module, where it has one.
        projections: the names of an expert's gate, up and down projections.
        shared: the name of the experts that every token has, where there are some.
        shared_size: inner features of those, together.
        shared_gate: the name of the layer by whose sigmoid their output is multiplied, where there is one.
        shared_bias: those have biases.
    """

    routing: Routing
    expert_size: int
    is_sparse: tuple[bool, ...]
    block: str = "mlp"
    router: str = "gate"
    choice_bias: str | None = None
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str | None = None
    shared_size: int = 0
    shared_gate: str | None = None
    shared_bias: bool = False

    def reduced(self, *, num_layers: int, vocab_size: int, factor: int) -> MixtureConfig:
        """Return a smaller model of the same kind of layers; of the last layers, as first ones may lack experts."""
        smaller = super().reduced(num_layers=num_layers, vocab_size=vocab_size, factor=factor)
        return replace(
            smaller,
            is_sparse=self.is_sparse[-num_layers:],
            expert_size=cut(self.expert_size, factor),
            shared_size=cut(self.shared_size, factor),
        )


def sequential_mixture(net: Ops[Value], config: MixtureConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    return layers_of(net, config, weights, self_attention, mixture_feed_forward)


def mixture_feed_forward(parts: Parts[Value], config: MixtureConfig, layer: int, x: Value) -> Value:
    """Write a layer's feed-forward over normalised `x`, a mixture or a plain one; return what is added."""
    if not config.is_sparse[layer]:
        return feed_forward(parts, config, layer, x)
    block = f"model.layers.{layer}.{config.block}"
    gate, up, down = (
        [f"{block}.experts.{index}.{name}.weight" for index in range(config.routing.num_experts)]
        for name in config.projections
    )
    result = mixed(parts, config, f"{block}.{config.router}", x, experts_of(parts, config, gate, up, down))
    if config.shared is None:
        return result
    gate_name, up_name, down_name = (f"{block}.{config.shared}.{name}" for name in config.projections)
    size, bias = config.shared_size, config.shared_bias
    shared = parts.gated(x, gate_name, up_name, down_name, config.activation, inner_size=size, bias=bias)
    if config.shared_gate is not None:
        opened = parts.whole(x, f"{block}.{config.shared_gate}", 1, config.hidden_size, exact=True)
        shared = parts.net.multiply(shared, parts.net.activation(opened, Activation.SIGMOID))
    return parts.net.add(result, shared)


def mixed(parts: Parts[Value], config: MixtureConfig, router: str, x: Value, experts: Experts) -> Value:
    """Return the weighted outputs of the experts that a router without a bias chooses for each token."""
    routing = config.routing
    logits = parts.whole(x, router, routing.num_experts, config.hidden_size, exact=True)
    if config.choice_bias is not None:
        bias = parts.weights.vector(f"{router}.{config.choice_bias}", routing.num_experts)
        routing = replace(routing, choice_bias=bias)
    return parts.net.experts(x, logits, routing, experts, gating(parts.net, config.activation))


def experts_of(
    parts: Parts[Value],
    config: MixtureConfig,
    gate: Iterable[str | TensorPart],
    up: Iterable[str | TensorPart],
    down: Iterable[str | TensorPart],
) -> Experts:
    """Return experts without biases, by where the projections of each are stored."""
    hidden, inner, stack = config.hidden_size, config.expert_size, parts.weights.stack
    return Experts(
        stack(list(gate), inner, hidden, Role.COLUMN),
        stack(list(up), inner, hidden, Role.COLUMN),
        stack(list(down), hidden, inner, Role.ROW),
    )


def gating(net: Ops[Value], activation: Activation) -> Gating[Value]:
    """Return the usual gating: the activation of the gate times the up projection."""
    return lambda gate, up: net.multiply(net.activation(gate, activation), up)


def read_routing_size(
    config: JsonConfig, num_experts: str, num_chosen: str, default: tuple[int, int]
) -> tuple[int, int]:
    """Return how many experts there are, and how many of them a token has.

    Args:
        config: config.json.
        num_experts: the key of the first.
        num_chosen: the key of the second.
        default: transformers' defaults of both.

    Raises:
        CheckpointError: more are chosen than there are.
    """
    experts, chosen = config.integer(num_experts, default[0]), config.integer(num_chosen, default[1])
    if chosen > experts:
        raise config.refuse(num_chosen, f"there are {experts} experts ({num_experts})")
    return experts, chosen


def read_sigmoid_routing(
    config: JsonConfig, default: tuple[int, int], groups: tuple[int, int], factor: float, *, normalised: bool
) -> Routing:
    """Return a routing by sigmoids, in groups that count by their best two experts.

    Args:
        config: config.json.
        default: transformers' defaults of n_routed_experts and num_experts_per_tok.
        groups: its defaults of n_group and topk_group.
        factor: its default of routed_scaling_factor.
        normalised: its default of norm_topk_prob.

    Raises:
        CheckpointError: numbers that do not fit each other, or another kind of routing.
    """
    refuse_other(config, {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1})
    experts, chosen = read_routing_size(config, "n_routed_experts", "num_experts_per_tok", default)
    num_groups, best = read_groups(config, experts, chosen, groups, least=2)
    return Routing(
        experts,
        chosen,
        Scoring.SIGMOID,
        config.flag("norm_topk_prob", default=normalised),
        config.number("routed_scaling_factor", factor),
        num_groups=num_groups,
        num_chosen_groups=best,
        group_top=2,
        sum_epsilon=1e-20,
    )


def read_groups(
    config: JsonConfig, experts: int, chosen: int, default: tuple[int, int], *, least: int
) -> tuple[int, int]:
    """Return into how many groups experts are divided, and from how many of them a token's are chosen.

    Args:
        config: config.json.
        experts: how many there are.
        chosen: how many of them a token has.
        default: transformers' defaults of n_group and topk_group.
        least: experts of a group.

    Raises:
        CheckpointError: numbers that do not fit each other.
    """
    groups, best = config.integer("n_group", default[0]), config.integer("topk_group", default[1])
    if experts % groups or experts // groups < least:
        raise config.refuse("n_group", f"does not divide {experts} experts (n_routed_experts) into groups of {least}")
    if best > groups or experts // groups * best < chosen:
        raise config.refuse("topk_group", f"{chosen} experts are chosen from {best} of {groups} groups (n_group)")
    return groups, best


def sparse_layers(config: JsonConfig, num_layers: int) -> tuple[bool, ...]:
    """Return which layers have experts: every `decoder_sparse_step`th, without those of `mlp_only_layers`.

    Raises:
        CheckpointError: the list has something else than numbers of layers.
    """
    step = config.integer("decoder_sparse_step", 1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise config.refuse("mlp_only_layers", "must be a list of numbers of layers")
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))
