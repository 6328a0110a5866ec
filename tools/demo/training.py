"""The demo model and its training.

Owns the sizes of the model and the schedule. Never reads or writes a file.
"""

from __future__ import annotations

import math
import time

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from demo.samples import Samples
from demo.tokenizer import BEGIN, END, PAD

MAX_POSITIONS = 1024
TOKENS_PER_STEP = 2048
# Rows are short for most of the training, which is cheaper, and long in the last part of it.
ROW_LENGTH, LONG_ROW_LENGTH, LONG_ROWS_FROM = 256, 512, 0.8
# The share of chat tokens grows from the first value to the second.
CHAT_SHARE = (0.35, 0.85)
PEAK_LEARNING_RATE, FINAL_LEARNING_RATE, WARM_UP_STEPS = 4e-3, 1e-4, 60


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return the untrained model: about 3.5 million parameters."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, progress: float) -> float:
    """Return the learning rate of a step: a short warm-up, then half a cosine over the whole training."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return (FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * cosine) * min(
        1.0, (step + 1) / WARM_UP_STEPS
    )


def train(model: LlamaForCausalLM, samples: Samples, steps: int, minutes: float) -> tuple[int, float]:
    """Train the model; return the number of steps done, and the mean loss of the last hundred of them."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    model.train()
    started = shown = time.monotonic()
    losses: list[float] = []
    progress, step = 0.0, 0
    while progress < 1.0:
        length = ROW_LENGTH if progress < LONG_ROWS_FROM else LONG_ROW_LENGTH
        share = CHAT_SHARE[0] + (CHAT_SHARE[1] - CHAT_SHARE[0]) * progress
        batch = samples.batch(TOKENS_PER_STEP // length, length, share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        hidden = model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            hidden[:, :-1].reshape(-1, hidden.shape[-1]), batch.labels[:, 1:].reshape(-1), ignore_index=-100
        )
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = [*losses[-99:], loss.item()]
        step += 1
        now = time.monotonic()
        progress = step / steps
        if minutes > 0:
            progress = max(progress, (now - started) / (60.0 * minutes))
        if now - shown > 15.0 or progress >= 1.0:
            shown = now
            rate = step * TOKENS_PER_STEP / (now - started)
            mean = sum(losses) / len(losses)
            print(f"step {step}/{steps}  {progress:4.0%}  loss {mean:.3f}  {rate:.0f} tokens/s", flush=True)
    return step, sum(losses) / len(losses)
