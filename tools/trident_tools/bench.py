"""`trident bench`: a running server is put under load and measured.

Owns the command's options and what it prints: tables go to standard output, progress and notes to standard error. Never
sends a request itself.

Load runs on greenlets: the command patches its own process, and only then imports the modules that need that. Importing
this module patches nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from trident_ensemble.contract.errors import ServerError
from trident_tools.load.bench_report import Outcome, render_json, stage_notes, stage_table, summary_table
from trident_tools.load.distributions import Distribution, parse_distribution
from trident_tools.load.load_plan import LoadPlan
from trident_tools.load.loads import ClosedLoop, Load, OpenLoop, Timing
from trident_tools.load.objectives import parse_objective
from trident_tools.load.option_values import field, list_of, number_from_zero, positive_number, read_by, whole_number
from trident_tools.load.output_files import output_file, replace_file
from trident_tools.load.page import render_page
from trident_tools.load.prompts import PromptPlan, read_prompts
from trident_tools.load.stage_result import StageResult
from trident_tools.load.statistics import StageFigures
from trident_tools.load.target import DEFAULT_URLS, Target
from trident_tools.load.text_maker import open_tokenizer

if TYPE_CHECKING:
    from trident_tools.load.session import Session

_EXTRAS = ("locust", "prometheus_client")
_PIPE_WIDTH = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    _add_load(parser.add_argument_group("load"))
    _add_prompts(parser.add_argument_group("prompts"))
    server = parser.add_argument_group("server")
    server.add_argument("--protocol", choices=tuple(DEFAULT_URLS), default="grpc", help="default: %(default)s")
    urls = ", ".join(f"{protocol} {url}" for protocol, url in DEFAULT_URLS.items())
    server.add_argument("--url", help=f"of the server (default: {urls})")
    server.add_argument("--model", help="that is asked (default: ensemble; openai: the first that is listed)")
    server.add_argument(
        "--field", action="append", type=field, default=[], metavar="NAME=VALUE",
        help="a further field of every request, the value as JSON or a bare word; may be given again",
    )  # fmt: skip
    server.add_argument("--metrics-url", metavar="URL", help="of the metrics page (default: port 8002 of the host)")
    reports = parser.add_argument_group("reports")
    reports.add_argument(
        "--goodput", nargs="+", type=parse_objective, default=[], metavar="METRIC:MS",
        help="objectives, such as time_to_first_token:500 inter_token_latency:50",
    )  # fmt: skip
    reports.add_argument("--json", type=output_file, metavar="FILE", help="write everything to a JSON file")
    reports.add_argument("--records", action="store_true", help="put every request into the JSON")
    reports.add_argument("--html", type=output_file, metavar="FILE", help="write a page with plots")
    reports.add_argument("--quiet", action="store_true", help="print nothing but the final table and errors")


def _add_load(group: argparse._ArgumentGroup) -> None:
    loads = group.add_mutually_exclusive_group(required=True)
    loads.add_argument(
        "--users", type=list_of(whole_number(1)), metavar="N[,N...]",
        help="closed loop: each sends the next request when the last has ended; a stage for each number",
    )  # fmt: skip
    loads.add_argument(
        "--rate", type=list_of(positive_number), metavar="R[,R...]",
        help="open loop: Poisson arrivals, requests/s, whatever becomes of them; a stage for each rate",
    )  # fmt: skip
    group.add_argument(
        "--ramp", type=number_from_zero, default=20.0, metavar="S",
        help="seconds before a stage is measured, in which users are spawned one by one (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--duration",
        type=positive_number,
        default=60.0,
        metavar="S",
        help="measured seconds a stage (default: %(default)g)",
    )
    group.add_argument(
        "--grace", type=number_from_zero, default=30.0, metavar="S",
        help="seconds that requests have to end after a stage; later they are errors (default: %(default)g)",
    )  # fmt: skip


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    for option, what in (("--input-tokens", "of each prompt"), ("--output-tokens", "to generate")):
        group.add_argument(
            option, type=parse_distribution, default=Distribution("constant", (128.0,)), metavar="TOKENS",
            help=f"{what}: 128, normal:MEAN:DEVIATION, uniform:LOW:HIGH or lognormal:MEAN:DEVIATION (default: 128)",
        )  # fmt: skip
    group.add_argument(
        "--prompts", type=read_by(read_prompts), metavar="FILE",
        help='prompts of your own, in turn; JSONL: {"text_input": ...} or {"messages": [...]}, maybe "max_tokens"',
    )  # fmt: skip
    group.add_argument(
        "--shared-prefix",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="tokens that all prompts begin with, besides",
    )
    group.add_argument(
        "--tokenizer", type=read_by(open_tokenizer), metavar="DIR",
        help="a folder with the model's tokenizer.json: input lengths become exact (without: a word is a token)",
    )  # fmt: skip
    group.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction,
        help="generate all tokens asked for (default: yes, but not with --prompts)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N",
        help="of lengths, texts and arrivals; a server with a prefix cache knows the texts of an earlier run",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the load, measure and report; return 0, or 130 after Ctrl-C.

    Raises:
        ServerError: the server does not answer or does not serve the model, no request was answered in any stage (which
            the reports show nevertheless), or a package is missing.
    """
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise ServerError(f"{' and '.join(missing)} must be installed: pip install 'trident-llm[bench]'")
    monkey: Any = import_module("gevent.monkey")
    monkey.patch_all()
    session = cast("type[Session]", import_module("trident_tools.load.session").Session)
    tables = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    messages = Console(stderr=True, quiet=args.quiet, highlight=False, soft_wrap=True, markup=False)

    def ends(result: StageResult, figures: StageFigures) -> None:
        if not args.quiet:
            tables.print(stage_table(result, figures))
        for note in stage_notes(result, figures):
            messages.print(f"note: {note}")

    with closing(session(_plan(args))) as load:
        for note in load.notes:
            messages.print(f"note: {note}")
        stages = load.run(
            lambda stage: messages.print(f"{stage}: {args.ramp:g} s ramp, then {args.duration:g} s measured"),
            lambda progress: messages.print(progress.line()),
            ends,
        )
    if len(stages) > 1:
        tables.print(summary_table(stages))
    elif args.quiet:
        tables.print(*(stage_table(*stage) for stage in stages))
    outcome = Outcome(_configuration(args), load.model, _notes(load.notes, stages), stages)
    _write(args, outcome, messages.print)
    if outcome.interrupted:
        return 130
    if any(figures.num_requests for _, figures in stages):
        return 0
    # Even with --quiet, a command that fails says why.
    raise ServerError(_nothing_answered(stages))


def _nothing_answered(stages: tuple[tuple[StageResult, StageFigures], ...]) -> str:
    errors = sum((Counter(figures.errors) for _, figures in stages), Counter())
    if not errors:
        return "no request began in the seconds that were measured, in any stage; raise --duration"
    kind, count = errors.most_common(1)[0]
    return f"no request was answered in any stage; {count} of {errors.total()} failed with: {kind}"


def _plan(args: argparse.Namespace) -> LoadPlan:
    loads: list[Load] = [*map(ClosedLoop, args.users or ()), *map(OpenLoop, args.rate or ())]
    written = () if args.prompts is None else args.prompts.content
    ignore_eos = not written if args.ignore_eos is None else args.ignore_eos
    return LoadPlan(
        target=Target(args.protocol, args.url or DEFAULT_URLS[args.protocol], args.model, ignore_eos, dict(args.field)),
        loads=tuple(loads),
        timing=Timing(args.ramp, args.duration, args.grace),
        prompts=PromptPlan(args.input_tokens, args.output_tokens, args.shared_prefix, written, args.seed),
        tokenizer=None if args.tokenizer is None else args.tokenizer.content,
        objectives=tuple(args.goodput),
        metrics_url=args.metrics_url,
    )


def _notes(notes: list[str], stages: tuple[tuple[StageResult, StageFigures], ...]) -> tuple[str, ...]:
    return (*notes, *(note for stage in stages for note in stage_notes(*stage)))


def _write(args: argparse.Namespace, outcome: Outcome, say: Callable[[str], None]) -> None:
    try:
        if args.json is not None:
            replace_file(args.json, render_json(outcome, args.records))
            say(f"wrote {args.json}")
        if args.html is not None:
            replace_file(args.html, render_page(outcome))
            say(f"wrote {args.html}")
    except OSError as error:
        raise ServerError(f"the report cannot be written: {error}") from None


def _configuration(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were in force, by name."""
    skipped = {"command", "json", "html", "records", "quiet"}
    options = {name: value for name, value in vars(args).items() if name not in skipped}
    options["url"] = args.url or DEFAULT_URLS[args.protocol]
    options["field"] = dict(args.field)
    options["ignore_eos"] = args.prompts is None if args.ignore_eos is None else args.ignore_eos
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str, dict)) else str(value)
