"""Train the demo checkpoint: a very small Llama which answers short questions about Python.

The result is an ordinary Hugging Face folder (config.json, model.safetensors in bfloat16, a byte-level BPE tokenizer
with a chat template), so that the first answer of a fresh installation is English, with nothing downloaded.

It needs torch, transformers, tokenizers and safetensors, and no other data than what every CPython carries: the
language reference in ``pydoc_data.topics``, the docstrings of the standard library, and ``conversations.json`` next
to this file, which holds the small talk and the question templates. The checkpoint in ``checkpoint/`` was trained from
the documentation of CPython 3.11 (3.11.7, Linux) on one x86-64 core with AVX-512, which took 39
minutes while other work ran on the same machine. From the root of a checkout::

    PYTHONPATH=tools python -m demo.train --output tools/demo/checkpoint --threads 1

All choices are drawn from ``--seed``: the same Python, torch, number of threads and steps give the same corpus,
tokenizer and order of samples, and on the same kind of CPU the same weights. With ``--minutes`` the schedule follows
the clock wherever that is ahead of the steps, and the result depends on the speed of the machine.

The output folder is replaced as a whole when everything has been written; Ctrl-C before that leaves it as it was.

Owns the command line and the order of the work. Never reads from the network.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from demo.conversations import Conversations
from demo.documents import read_documents
from demo.output import replace_folder, save, show_samples, write_card
from demo.samples import Samples
from demo.tokenizer import train_tokenizer
from demo.training import TOKENS_PER_STEP, new_model, train


def parse_arguments() -> argparse.Namespace:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train Trident's demo checkpoint.")
    parser.add_argument("--output", type=Path, default=here / "checkpoint", help="the folder to write or replace")
    parser.add_argument(
        "--steps", type=int, default=3000, help=f"steps of {TOKENS_PER_STEP} tokens (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="finish in this time, with fewer steps if need be")
    parser.add_argument("--seed", type=int, default=1, help="where all random choices start (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.threads < 1 or arguments.minutes < 0:
        parser.error("--steps and --threads must be at least 1, and --minutes must not be negative")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    conversations = Conversations.read(Path(__file__).resolve().with_name("conversations.json"))
    pages, docstrings = read_documents()
    texts = ["\n\n".join(page) for page in pages] + docstrings
    tokenizer = train_tokenizer(iter([*texts, *list(conversations.all_text()) * 3]))
    samples = Samples(tokenizer, conversations, arguments.seed)
    facts = len(conversations.concepts) + len(conversations.core) + len(conversations.library)
    print(f"{samples.page_tokens} tokens of reference, {samples.docstring_tokens} of docstrings, {facts} facts")
    model = new_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {arguments.threads} threads", flush=True)
    started = time.monotonic()
    steps, loss = train(model, samples, arguments.steps, arguments.minutes)
    elapsed = (time.monotonic() - started) / 60.0

    output: Path = arguments.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        folder = Path(scratch, output.name)
        folder.mkdir()
        save(folder, model, tokenizer)
        write_card(
            folder,
            {
                "parameters": f"{parameters}",
                "documentation": f"CPython {platform.python_version()}, {platform.system()}",
                "text": f"{samples.page_tokens + samples.docstring_tokens} tokens, and {facts} facts to ask about",
                "training": f"{steps} steps of {TOKENS_PER_STEP} tokens, {elapsed:.0f} minutes",
                "seed and threads": f"{arguments.seed}, {arguments.threads}",
                "loss": f"{loss:.3f}",
                "torch": torch.__version__,
            },
        )
        replace_folder(folder, output)
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {size} bytes, loss {loss:.3f} after {steps} steps, {elapsed:.1f} minutes\n", flush=True)
    show_samples(output)


def main() -> int:
    """Run the command line; return the exit status: 130 for Ctrl-C."""
    with contextlib.suppress(BrokenPipeError):
        try:
            run(parse_arguments())
        except KeyboardInterrupt:
            print("\ninterrupted; nothing was written", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
