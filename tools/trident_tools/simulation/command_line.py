"""The reading of the options of `trident simulate`.

Owns which options go together, and the refusals where they do not. Never declares an option.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.settings import CoreSettings, render_parameters
from trident_tools.core_options import core_settings
from trident_tools.load.loads import ClosedLoop, OpenLoop
from trident_tools.server.overlay import served_settings
from trident_tools.simulation.bench_file import BenchedServer, read_bench
from trident_tools.simulation.deployments import (
    GivenLimits,
    Roof,
    engine_spec,
    model_of_repository,
    read_engine,
    read_model,
)
from trident_tools.simulation.hardware import GPUS, Efficiency, Hardware
from trident_tools.simulation.model_shape import model_shape
from trident_tools.simulation.replica import Deployment
from trident_tools.simulation.runner import Scenario
from trident_tools.simulation.step_cost import FittedCost, StepCost, parse_step_time
from trident_tools.simulation.workload import Workload


def make_scenarios(args: argparse.Namespace) -> list[Scenario]:
    """Make a scenario for each rate, or for each number of users.

    Raises:
        TridentError: options contradict each other, or a file cannot be used.
    """
    benched = None if args.from_bench is None else read_bench(args.from_bench)
    roof = _roof(args)
    cost = _cost(args, benched, roof)
    manifest = None if args.engine is None else read_engine(args.engine)
    settings = _settings(args)
    limits = GivenLimits(args.max_num_seqs, args.max_num_tokens, args.block_size, args.kv_tokens)
    spec = engine_spec(limits, settings, manifest, benched, roof)
    deployment = Deployment(spec, settings, cost, args.replicas)
    workload = Workload(
        input_tokens=args.input_tokens,
        output_tokens=args.output_tokens,
        shared_prefix=args.shared_prefix,
        ramp=args.ramp,
        num_requests=args.requests,
        duration=args.duration,
        overhead=_overhead(args, benched),
        seed=args.seed,
    )
    return [
        *(Scenario(deployment, workload, args.router, OpenLoop(rate)) for rate in args.rate or ()),
        *(Scenario(deployment, workload, args.router, ClosedLoop(users)) for users in args.users or ()),
    ]


def configuration(args: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    """Return the description of what was simulated, for JSON."""
    deployment, workload = scenario.deployment, scenario.workload
    return {
        "step_cost": asdict(deployment.cost),  # type: ignore[call-overload]
        "engine": asdict(deployment.spec),
        "settings": render_parameters(deployment.settings),
        "replicas": deployment.num_replicas,
        "router": scenario.router.value,
        "price_per_hour": args.price_per_hour,
        "workload": {
            **asdict(workload),
            "input_tokens": str(workload.input_tokens),
            "output_tokens": str(workload.output_tokens),
        },
    }


def _cost(args: argparse.Namespace, benched: BenchedServer | None, roof: Roof | None) -> StepCost:
    given = [value for value in (args.from_bench, args.step_time, roof) if value is not None]
    if len(given) != 1:
        raise ConfigError("give one of --from-bench, --step-time, and --gpu with --model: what a step costs")
    if benched is not None:
        return FittedCost(benched.step_time)
    if args.step_time is not None:
        return FittedCost(parse_step_time(args.step_time))
    assert roof is not None
    return roof.cost


def _roof(args: argparse.Namespace) -> Roof | None:
    own = (args.bandwidth, args.flops, args.memory)
    if args.gpu is None and own == (None, None, None):
        if args.model is not None:
            raise ConfigError("--model: what it runs on is not known; give --gpu, or --bandwidth, --flops and --memory")
        return None
    if args.gpu is None and None in own:
        raise ConfigError("--bandwidth, --flops and --memory: give all three, or --gpu")
    if args.model is None:
        raise ConfigError("--gpu: what it runs is not known; give --model, a checkpoint's folder or its config.json")
    bandwidth, flops, memory = own
    if args.gpu is not None:
        gpu = GPUS[args.gpu]
        flops = flops or (gpu.flops_fp8 if args.weights == "fp8" else gpu.flops_bf16)
        if flops is None:
            raise ConfigError(f"--weights: {args.gpu} has no fp8 products; choose another format, or give --flops")
        bandwidth, memory = bandwidth or gpu.bandwidth, memory or gpu.memory
    model = read_model(args.model)
    return Roof(
        hardware=Hardware(bandwidth, flops, memory),
        efficiency=Efficiency(args.bandwidth_share, args.flops_share, args.memory_share),
        shape=model_shape(model, args.weights, args.kv_cache_type),
        max_seq_len=model.max_position_embeddings,
        step_overhead=args.step_overhead_ms / 1000,
    )


def _settings(args: argparse.Namespace) -> CoreSettings:
    """Return the settings asked for, on top of the repository's own."""
    names = None if args.engine is None else model_of_repository(args.engine)
    served = None if names is None else served_settings(args.engine, names)
    # How many draft tokens are accepted depends on the text, which is not simulated.
    return replace(core_settings(args, served), max_draft_tokens=0)


def _overhead(args: argparse.Namespace, benched: BenchedServer | None) -> float:
    if args.overhead_ms is not None:
        return float(args.overhead_ms) / 1000
    return 0.0 if benched is None else benched.overhead
