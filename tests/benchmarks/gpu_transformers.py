"""The outside comparison: transformers' own continuous batching on the same checkpoint and device.

Owns the model, its manager and the run itself. Never imports Trident.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM

_RESULT_SECONDS = 120


@dataclass(frozen=True)
class BaselineRun:
    """Seconds from the first request to the last token; each request's first token, s; token ids by request."""

    seconds: float
    first_token_seconds: list[float]
    output_ids: list[list[int]]


class TransformersBaseline(AbstractContextManager["TransformersBaseline"]):
    """One loaded model and its running manager; what it takes of the device's memory is free again at the end.

    Args:
        checkpoint: folder of a Llama checkpoint.
        device: as torch names it.
        max_num_tokens: tokens in a batch.
        cache_tokens: tokens in the cache, of all requests together.
    """

    def __init__(self, checkpoint: Path, device: str, max_num_tokens: int, cache_tokens: int) -> None:
        self._model: Any = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval().to(device)
        page_size = 256
        config = ContinuousBatchingConfig(
            page_size=page_size,
            num_blocks=-(-cache_tokens // page_size),
            max_batch_tokens=max_num_tokens,
            allow_block_sharing=False,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1)
        self._manager: Any = self._model.init_continuous_batching(generation, config)
        self._manager.warmup()
        self._manager.start()

    @property
    def attention(self) -> str:
        """Which attention transformers has chosen; flash attention is another package, taken where it is there."""
        return str(self._model.config._attn_implementation)

    def run(self, prompts: list[list[int]], max_tokens: int) -> BaselineRun:
        """All prompts at once, greedy, `max_tokens` each.

        Raises:
            RuntimeError: a request failed, or was cut short.
        """
        ids = self._manager.add_requests(prompts, max_new_tokens=max_tokens, record_timestamps=True)
        outputs: dict[str, Any] = {}
        while len(outputs) < len(ids):
            output = self._manager.get_result(timeout=_RESULT_SECONDS)
            if output is None:
                raise RuntimeError(
                    f"transformers' continuous batching: {len(ids) - len(outputs)} requests had no answer"
                )
            if output.is_finished():
                outputs[output.request_id] = output
        ordered = [outputs[request] for request in ids]
        for output in ordered:
            if output.error or len(output.generated_tokens) != max_tokens:
                raise RuntimeError(f"transformers' continuous batching: {output.error or 'a request was cut short'}")
        start = min(output.created_time for output in ordered)
        return BaselineRun(
            max(output.timestamps[-1] for output in ordered) - start,
            [output.timestamps[0] - start for output in ordered],
            [list(output.generated_tokens) for output in ordered],
        )

    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Of one whole sequence, `[len(tokens), vocab]`; the manager pauses meanwhile."""
        with self._manager.pause(), torch.no_grad():
            logits = self._model(torch.tensor([tokens], device=self._model.device)).logits[0]
        values: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return values

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the manager and free the memory."""
        self._manager.stop(block=True, timeout=30)
        self._manager.destroy()
        del self._manager, self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
