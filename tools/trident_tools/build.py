"""`trident build`: a checkpoint becomes a model repository.

Owns the command's options and what it prints. Never compiles or moves a file itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from trident_compiler.compiler_choice import (
    CUDA,
    OPENVINO,
    TENSORRT,
    CompilerChoice,
    choose_compiler,
    choose_exported_compiler,
)
from trident_compiler.engine_builder import build_engine
from trident_compiler.families.features import check_features
from trident_compiler.gpu_choice import BuildRequest
from trident_compiler.model_folder import ExportedModel, Opened, open_model
from trident_compiler.planning import slot_plan
from trident_compiler.planning.memory_plan import (
    DEFAULT_CACHE_SHARE,
    DEFAULT_MAX_NUM_SEQS,
    DEFAULT_MAX_NUM_TOKENS,
    DEFAULT_MAX_SEQ_LEN,
    LimitsRequest,
    parse_bytes,
    parse_cache_size,
)
from trident_compiler.weights.formats import QUANTIZED
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, BuildError, CheckpointError, PlanError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import read_manifest
from trident_ensemble.contract.settings import check_limits
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools.building.bars import Bars
from trident_tools.building.card import (
    ServedNames,
    build_time,
    check_names_are_free,
    default_served_name,
    make_card,
)
from trident_tools.building.gguf_import import SUFFIX, import_file, is_checkpoint_file
from trident_tools.building.memory_use import describe_taken, taken_memory
from trident_tools.building.neighbours import check_no_clash, neighbour_cards, neighbours_memory
from trident_tools.building.output_markers import OutputMarkers
from trident_tools.building.plan_lines import plan_lines
from trident_tools.building.repository import engine_version, install, staging
from trident_tools.building.text_check import check_text
from trident_tools.core_options import add_core_options, core_settings
from trident_tools.server.built_models import describe_engine
from trident_tools.switching.compatibility import ELSEWHERE
from trident_tools.switching.existing_model import (
    ExistingModel,
    check_asked,
    check_only_version,
    new_card,
    open_existing,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="Hugging Face folder: config.json, tokenizer.json, and *.safetensors or openvino_model.xml; or a GGUF "
        "file, which is imported first",
    )
    parser.add_argument(
        "--repository", type=Path, required=True, metavar="DIR", help="Triton model repository to write"
    )
    parser.add_argument(
        "--new-version",
        action="store_true",
        help="add the engine to a model that the repository has, as its next version, beside the earlier ones; "
        "tokenizer, names, --max-seq-len and serving options are the model's (default: replace version 1)",
    )
    _add_names(parser.add_argument_group("names"))
    _add_target(parser.add_argument_group("what it is built for"))
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp16", "fp32"),
        help="of the computation: fp16 on GPUs, fp32 on CPUs and with --engine cuda, bf16 everywhere (default: on CPUs "
        "what is measured to be faster, on GPUs as the checkpoint)",
    )
    parser.add_argument(
        "--weights",
        choices=("bf16", "fp16", *QUANTIZED),
        help="format of the weights; fp16 and fp8 on GPUs (default: as the checkpoint)",
    )
    parser.add_argument(
        "--kv-cache-precision",
        choices=("auto", "fp8"),
        default="auto",
        help="format of the KV cache: fp8 (e4m3, without scales) takes a byte a number, by --engine cuda for GPUs "
        "from 8.9 on (default auto: on GPUs as the computation, on CPUs what OpenVINO has for it)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-num-seqs", type=int, metavar="N", help=f"sequences in one step (default {DEFAULT_MAX_NUM_SEQS})"
    )
    limits.add_argument(
        "--max-num-tokens",
        type=int,
        metavar="N",
        help=f"tokens computed in one step (default {DEFAULT_MAX_NUM_TOKENS} on CPUs and "
        f"{slot_plan.DEFAULT_MAX_NUM_TOKENS} on GPUs, or --max-num-seqs if that is more)",
    )
    limits.add_argument(
        "--max-seq-len",
        type=int,
        metavar="N",
        help=f"prompt and output together (default: what the checkpoint was made for, {DEFAULT_MAX_SEQ_LEN} at most)",
    )
    limits.add_argument(
        "--kv-cache",
        metavar="SIZE",
        help="2GiB, 32768t (tokens) or 50%% of the memory that weights leave free "
        f"(default: enough for all sequences, {DEFAULT_CACHE_SHARE:.0%} at most on CPUs and "
        f"{slot_plan.DEFAULT_CACHE_SHARE:.0%} on GPUs)".replace("0% ", "0%% "),
    )
    instances = parser.add_argument_group("instances")
    instances.add_argument("--preprocessing-instances", type=int, metavar="N", help="tokenizers (default: by cores)")
    instances.add_argument(
        "--postprocessing-instances", type=int, metavar="N", help="de-tokenizers (default: by cores)"
    )
    add_core_options(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _add_names(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--name",
        default=layout.ENSEMBLE,
        help="of the ensemble in the repository, beside others; its other models are NAME_preprocessing, NAME_core, "
        "NAME_postprocessing and NAME_unary (default: %(default)s, with preprocessing, core, postprocessing and "
        "ensemble_unary, as clients of tensorrtllm_backend know them)",
    )
    group.add_argument(
        "--served-name",
        metavar="NAME",
        help="by which clients of the OpenAI API ask for the model (default: --name if given, or else the name of the "
        "checkpoint's folder)",
    )
    group.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="another such name; may be given several times"
    )


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine",
        choices=(OPENVINO, TENSORRT, CUDA),
        help="openvino for CPUs, tensorrt for NVIDIA GPUs, cuda for them with kernels of Trident's own, which no GPU "
        "has run yet (default: openvino or tensorrt, as the machine has a GPU and TensorRT, or not)",
    )
    group.add_argument(
        "--compute-capability",
        metavar="X.Y",
        help="of a GPU elsewhere, for which TensorRT-RTX and --engine cuda build on any machine, such as 8.9 (default: "
        "the GPU here)",
    )
    group.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help="memory of the GPU to plan with, such as 24GiB (default: what the GPU here has free)",
    )
    group.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="GPUs to divide the network among (default 1)"
    )
    group.add_argument(
        "--attention",
        choices=("mask", "lengths"),
        default="mask",
        help="how TensorRT's attention is kept from what a slot does not hold: by a mask, which is right everywhere, "
        "or by lengths, which read less and which some kernels ignore: try `make test-gpu` first (default mask)",
    )


def run(args: argparse.Namespace) -> int:
    """Build the model repository; return 0.

    Raises:
        TridentError: the checkpoint or the repository cannot be used, or the plan does not fit; nothing has been
            changed.
    """
    console = Console(quiet=args.quiet, highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        folder: Path = args.checkpoint
        if folder.is_file() and not is_checkpoint_file(folder):
            raise CheckpointError(f"{folder}: neither a folder nor a {SUFFIX} file")
        if folder.is_file():
            folder = stack.enter_context(staging(args.repository)) / "checkpoint"
            import_file(args.checkpoint, folder, console)
        opened = open_model(folder)
        if isinstance(opened, ExportedModel):
            return _build(args, opened, choose_exported_compiler, console)
        return _build(args, opened, choose_compiler, console)


def _build(
    args: argparse.Namespace,
    opened: Opened,
    choose: Callable[[BuildRequest], CompilerChoice[Opened]],
    console: Console,
) -> int:
    names = ModelNames(args.name)
    check_no_clash(args.repository, names)
    existing = _existing(args, names)
    served_names = _served_names(args) if existing is None else _names_of(existing)
    neighbours = [*neighbours_memory(args.repository, names), *([] if existing is None else [existing.memory])]
    check_names_are_free(served_names, neighbour_cards(args.repository, names))
    created = build_time(os.environ)
    core = core_settings(args, None if existing is None else existing.settings.core)
    wanted = _limits_request(args, existing)
    memory = None if args.gpu_memory is None else parse_bytes("--gpu-memory", args.gpu_memory)
    asked = BuildRequest(
        engine=args.engine,
        capability=args.compute_capability,
        gpus=core.gpu,
        gpu_memory=memory,
        tensor_parallel=args.tensor_parallel,
        attention_lengths=args.attention == "lengths",
        fp8_cache=args.kv_cache_precision == "fp8",
        taken=taken_memory(neighbours),
    )
    choice = choose(asked)
    compiler = choice.compiler
    model = opened.model
    check_features(model.model_type, model.features, compiler.compiler.name, compiler.refusals)
    precision = compiler.precision(opened, args.precision, args.weights)
    taken = describe_taken(neighbours, choice.gpus)
    try:
        plan = compiler.plan(opened, precision, wanted)
    except PlanError as error:
        raise PlanError(f"{error}{f'; other models of the repository take {taken}' if taken else ''}") from None
    if existing is None:
        core = replace(core, gpu=choice.gpus)
    check_limits(core, plan)
    for name, text in plan_lines(opened, choice, precision, plan, taken):
        console.print(f"{name:<9} {text}", markup=False)

    markers = OutputMarkers()

    def describe_text(engine_folder: Path) -> None:
        nonlocal markers
        if existing is not None:
            existing.check_tokenizer(engine_folder)
        findings = check_text(opened, engine_folder)
        markers = findings.markers
        for name, text in findings.lines:
            console.print(f"{name:<9} {text}", markup=False)

    version = engine_version(names, 1 if existing is None else existing.version)
    replaced = _replaced(args.repository / version)
    with staging(args.repository) as staged:
        engine = staged / version
        engine.mkdir(parents=True)
        with Bars(console) as bars:
            manifest = build_engine(
                opened,
                engine,
                precision,
                plan,
                compiler=compiler,
                describe_text=describe_text,
                progress=bars,
            )
        card = make_card(served_names, created, engine, manifest, markers)
        settings = RepositorySettings(args.preprocessing_instances, args.postprocessing_instances, core, names)
        if existing is not None:
            settings, card = existing.settings, new_card(existing, manifest, card)
        texts = render_repository(settings, card)
        install(staged, args.repository, texts, version, may_replace=existing is None)
    if replaced is not None:
        console.print(f"replaced  {version}: {replaced}", markup=False)
    what = args.repository if existing is None else f"{args.repository / version}, beside the earlier versions"
    console.print(f"built     {what}", markup=False)
    return 0


def _limits_request(args: argparse.Namespace, existing: ExistingModel | None) -> LimitsRequest:
    return LimitsRequest(
        max_num_seqs=args.max_num_seqs,
        max_num_tokens=args.max_num_tokens,
        max_seq_len=args.max_seq_len if existing is None else existing.manifest.limits.max_seq_len,
        cache=None if args.kv_cache is None else parse_cache_size(args.kv_cache),
    )


def _existing(args: argparse.Namespace, names: ModelNames) -> ExistingModel | None:
    """Return the model that gets another version; None where a whole model is built."""
    if not args.new_version:
        check_only_version(args.repository, names)
        return None
    existing = open_existing(args.repository, names)
    instances = (args.preprocessing_instances, args.postprocessing_instances) != (None, None)
    served = [name for name in (args.served_name, *args.alias) if name is not None]
    check_asked(existing, asked=core_settings(args, existing.settings.core), served=served, instances=instances)
    if args.max_seq_len not in {None, existing.manifest.limits.max_seq_len}:
        raise BuildError(
            f"--max-seq-len: it is {existing.manifest.limits.max_seq_len} for all versions of the model; leave it out, "
            f"or {ELSEWHERE}"
        )
    return existing


def _names_of(existing: ExistingModel) -> ServedNames:
    return ServedNames(existing.card.name, existing.card.aliases)


def _served_names(args: argparse.Namespace) -> ServedNames:
    named = None if args.name == layout.ENSEMBLE else args.name
    return ServedNames(args.served_name or named or default_served_name(args.checkpoint), tuple(args.alias))


def _replaced(engine: Path) -> str | None:
    """Describe the engine that is in place in a few words; None if there is none."""
    if not engine.is_dir():
        return None
    try:
        old = read_manifest(engine)
    except ArtifactError as error:
        return f"an engine that cannot be read ({error})"
    return describe_engine(old)
