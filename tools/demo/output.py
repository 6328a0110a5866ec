"""The demo checkpoint's folder.

Owns what is written into it, its replacement as a whole, and the samples shown of it. Never trains.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from demo.tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, token_ids
from demo.training import MAX_POSITIONS

SAMPLE_QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is a for loop?",
    "What does len do?",
    "What does str.split do?",
    "How do I use the with statement?",
    "What is the json module?",
    "What is the capital of Spain?",
    "Thanks!",
)
SAMPLE_PROMPTS = ("The with statement is used", "A function is")


def save(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write the Hugging Face folder."""
    ids = token_ids(tokenizer)
    model = model.to(torch.bfloat16)  # type: ignore[arg-type, unused-ignore]
    model.generation_config = GenerationConfig(bos_token_id=ids[BEGIN], eos_token_id=ids[END], pad_token_id=ids[PAD])
    model.save_pretrained(folder)
    # The names that readers other than the newest transformers look for.
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    config.setdefault("torch_dtype", "bfloat16")
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for path in folder.iterdir():
        path.chmod(0o644)
    settings_path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_card(folder: Path, facts: dict[str, str]) -> None:
    """Write README.md: what this model is and how it came to be."""
    lines = [
        "# Trident's demo model",
        "",
        "A very small Llama which answers short questions about Python, and otherwise writes something that resembles",
        "its documentation. It exists so that a fresh installation has something to serve; it knows next to nothing.",
        "Made by `tools/demo/train.py`, which also says how to make it again. The text that it was trained on is the",
        "documentation that comes with CPython (copyright Python Software Foundation, PSF license, version 2).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def replace_folder(new: Path, output: Path) -> None:
    """Put the new folder in the place of the old one, which is removed only when the new one is there."""
    old = new.with_name(new.name + ".old")
    if output.exists():
        output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def show_samples(folder: Path) -> None:
    """Load the folder as anybody would, and print what the model says."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def continued(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not prompt.startswith(BEGIN))
        output = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=80, do_sample=False
        )
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    for question in SAMPLE_QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        print(f"> {question}\n{continued(prompt)}\n")
    for prompt in SAMPLE_PROMPTS:
        print(f"[{prompt}]{continued(prompt)}\n")
