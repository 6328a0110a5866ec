"""The plan of `trident build`, in lines for people.

Owns their words. Never decides or prints anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from trident_compiler.compiler_choice import CompilerChoice
from trident_compiler.model_folder import ModelFolder, Opened
from trident_compiler.openvino.precision_trials import DECODE_SEQUENCES, PROMPT_TOKENS
from trident_compiler.planning.memory_plan import MemoryPlan, size
from trident_ensemble.contract.manifest import KVKind, Precision, PrecisionChoice


def plan_lines(
    opened: Opened, choice: CompilerChoice[Opened], precision: Precision, plan: MemoryPlan, taken: str
) -> Iterator[tuple[str, str]]:
    """Yield the subject and the text of each line.

    Args:
        opened: what is built.
        choice: the compiler.
        precision: as the compiler resolved it.
        plan: as the compiler made it.
        taken: what other models take of the memory that was planned with; empty where none does.
    """
    model, compiler = opened.model, choice.compiler.compiler
    on_cpu = compiler.target == "cpu"
    resident = "packed for this CPU" if on_cpu else "and all but the KV cache"
    parts = "blocks" if plan.kv_kind is KVKind.BLOCKS else "slots"
    target = "this CPU" if on_cpu else compiler.target
    yield "model", f"{model.model_type}, {model.num_layers} layers, vocabulary {model.vocab_size}"
    yield "engine", f"{compiler.name} {compiler.version} for {target}: {choice.why}"
    weights = choice.compiler.describe_weights(opened, precision)
    choice_of = precision.choice
    reason = f": {choice_of.reason}" if choice_of.reason else ""
    yield "precision", f"{precision.compute}, {weights}, {precision.kv_cache} KV cache{reason}"
    if choice_of.trials:
        yield "measured", _measured(choice_of)
    yield "memory", f"{size(plan.free_bytes)} {choice.compiler.memory}"
    if taken:
        yield "beside", f"other models of the repository, for which memory is left: {taken}"
    yield "weights", f"{size(plan.weights_bytes)}, {resident} {size(plan.resident_bytes)}"
    yield (
        "KV cache",
        f"{size(plan.cache_bytes)}: {plan.num_blocks} {parts} of {plan.block_size} tokens, "
        f"{plan.cache_tokens} tokens, {plan.full_sequences} sequences of full length",
    )
    yield (
        "limits",
        f"{plan.max_num_seqs} sequences, {plan.max_num_tokens} tokens a step, {plan.max_seq_len} tokens a sequence",
    )
    yield from _rotary(opened, plan)
    yield from _end_of_text(opened)
    if opened.tokenizer_files.converted_from is not None:
        yield "tokenizer", f"converted from {opened.tokenizer_files.converted_from} by transformers"
    for setting in opened.not_served:
        yield "not used", f"{setting} of generation_config.json: not served yet"


def _measured(choice: PrecisionChoice) -> str:
    times = ", ".join(f"{trial.compute} {trial.prompt_ms:.1f} + {trial.decode_ms:.1f} ms" for trial in choice.trials)
    return (
        f"{times}: a prompt of {PROMPT_TOKENS} tokens and a token of each of {DECODE_SEQUENCES} sequences, through "
        f"layers of this shape, on {choice.cpu}"
    )


def _rotary(opened: ModelFolder, plan: MemoryPlan) -> Iterator[tuple[str, str]]:
    switch = opened.model.rotary_switch
    if switch is None:
        return
    if plan.max_seq_len > switch:
        remedy = f"all sequences have them; --max-seq-len {switch} takes the short ones"
        yield "rotary", f"the long factors, as sequences may have more than {switch} tokens: {remedy}"
    else:
        yield "rotary", f"the short factors, as no sequence has more than {switch} tokens"


def _end_of_text(opened: ModelFolder) -> Iterator[tuple[str, str]]:
    ends = opened.end_of_text
    tokens = ", ".join(f"{token.token_id} {token.text!r} ({', '.join(token.named_by)})" for token in ends.tokens)
    none = "none: no file names a token that ends the text, so answers end at max_tokens or a stop string alone"
    yield "end", tokens or none
    for text in ends.unknown:
        yield "warning", f"{text} is not a token of the tokenizer, and ends nothing"
