"""The outside comparison: openvino-genai's continuous batching on the same checkpoint, budget and machine.

Owns the way from a Llama checkpoint to the network openvino-genai runs, and the run itself. Never imports Trident.

openvino-genai wants a stateful network in OpenVINO's format: scaled dot product attention over a cache that is hidden
in variables and reordered by a `beam_idx` input; at load it turns those into paged attention. `optimum-intel` exports
that, but its 2.2.0 wants transformers older than 5.6, so it cannot live in the environment under test. Hence the same
steps here, with what `trident-llm[bench,test]` installs and nothing more: a Llama of transformers' parts is traced by
torch, converted by `openvino.convert_model`, and the cache becomes state. Weights are stored as f16 and the products
run in bf16, as in Trident's engine. No tokenizer is needed: requests are token ids.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from transformers import LlamaForCausalLM

_KV_BLOCK_SIZE = 32  # tokens; openvino-genai fixes it for CPUs and counts its cache in blocks
_INPUTS = ("input_ids", "attention_mask", "position_ids")


class GenaiBaseline:
    """One loaded pipeline.

    Args:
        checkpoint: folder of a Llama checkpoint.
        work: folder for the converted network; made when missing, the network in it is replaced.
        max_num_batched_tokens: token budget of a step.
        cache_tokens: size of the KV cache, in tokens of all sequences together.
        precision: of the computation, as `INFERENCE_PRECISION_HINT` spells it.
    """

    def __init__(
        self, checkpoint: Path, work: Path, max_num_batched_tokens: int, cache_tokens: int, precision: str = "bf16"
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        ov.save_model(convert_llama(checkpoint), work / "openvino_model.xml", compress_to_fp16=True)
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = max_num_batched_tokens
        scheduler.num_kv_blocks = -(-cache_tokens // _KV_BLOCK_SIZE)
        scheduler.dynamic_split_fuse = True  # prompts and generation share steps, as in Trident
        scheduler.enable_prefix_caching = False
        self._pipeline = genai.ContinuousBatchingPipeline(
            work, scheduler, "CPU", {"INFERENCE_PRECISION_HINT": precision}
        )

    def run(self, prompts: list[list[int]], max_new_tokens: int) -> float:
        """All prompts at once, greedy, `max_new_tokens` each, whatever they are.

        Returns:
            Seconds from the first request added to the last token.

        Raises:
            RuntimeError: a sequence was cut short; the cache is too small for it.
        """
        seconds, outputs = self.generate(prompts, max_new_tokens)
        if any(len(output) != max_new_tokens for output in outputs):
            raise RuntimeError(f"openvino-genai generated {[len(output) for output in outputs]} tokens")
        return seconds

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> tuple[float, list[list[int]]]:
        """As `run`, with the token ids of each sequence."""
        config = genai.GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, ignore_eos=True)
        config.set_eos_token_id(0)  # without effect, but it must be an id
        start = time.perf_counter()
        handles = [
            self._pipeline.add_request(index, ov.Tensor(np.array([prompt], np.int64)), config)
            for index, prompt in enumerate(prompts)
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        seconds = time.perf_counter() - start
        return seconds, [list(handle.read_all()[0].generated_ids) for handle in handles]


class _StatelessLlama(torch.nn.Module):
    """Llama with the cache as further inputs and outputs: key, value of layer 0, of layer 1, ...

    transformers holds the weights and computes norms, rotary angles and feed-forward. What its layers ask of a cache
    changes between its releases, so attention is written out here.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        columns = torch.arange(attention_mask.shape[1])
        rows = columns[past[0].shape[2] :]
        visible = (columns <= rows[:, None]) & attention_mask.to(torch.bool)[:, None, None, :]
        body = self.network.model
        hidden = body.embed_tokens(input_ids)
        cos, sin = (angles.unsqueeze(1) for angles in body.rotary_emb(hidden, position_ids))
        present: list[torch.Tensor] = []
        for index, layer in enumerate(body.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                project(normed).view(*normed.shape[:2], -1, attention.head_dim).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            key = torch.cat((past[2 * index], _rotate(key, cos, sin)), dim=2)
            value = torch.cat((past[2 * index + 1], value), dim=2)
            present += [key, value]
            groups = attention.num_key_value_groups
            attended = torch.nn.functional.scaled_dot_product_attention(
                _rotate(query, cos, sin), _repeat(key, groups), _repeat(value, groups), attn_mask=visible
            )
            hidden = hidden + attention.o_proj(attended.transpose(1, 2).reshape(*normed.shape[:2], -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.network.lm_head(body.norm(hidden)), *present


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads[..., : heads.shape[-1] // 2], heads[..., heads.shape[-1] // 2 :]
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _repeat(heads: torch.Tensor, times: int) -> torch.Tensor:
    """One KV head for each query head: `[batch, kv_heads, ...]` to `[batch, kv_heads * times, ...]`."""
    batch, num_heads, length, head_dim = heads.shape
    return heads[:, :, None].expand(batch, num_heads, times, length, head_dim).reshape(batch, -1, length, head_dim)


def convert_llama(checkpoint: Path) -> Any:
    """A Llama checkpoint as the stateful `openvino.Model` that openvino-genai loads, weights still in f32."""
    network = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
    config = network.config
    num_caches, num_heads, head_dim = 2 * config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    length, past_length = 2, 3
    ids = torch.zeros(1, length, dtype=torch.int64)
    mask = torch.ones(1, past_length + length, dtype=torch.int64)
    past = [torch.zeros(1, num_heads, past_length, head_dim) for _ in range(num_caches)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches fixed by tracing, which are those of a masked network
        model = ov.convert_model(_StatelessLlama(network), example_input=(ids, mask, ids, *past))
    past_names = [f"past.{index}" for index in range(num_caches)]
    present_names = [f"present.{index}" for index in range(num_caches)]
    for port, name in zip(model.inputs, (*_INPUTS, *past_names), strict=True):
        port.get_tensor().set_names({name})
        shape = [-1, -1] if name in _INPUTS else [-1, num_heads, -1, head_dim]
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    for port, name in zip(model.outputs, ("logits", *present_names), strict=True):
        port.get_tensor().set_names({name})
    _reorder_by_beam(model, past_names)
    apply_make_stateful_transformation(model, dict(zip(past_names, present_names, strict=True)))
    _start_empty(model, num_heads, head_dim)
    model.validate_nodes_and_infer_types()
    return model


def _reorder_by_beam(model: Any, past_names: list[str]) -> None:
    beam_idx = ops.parameter([-1], ov.Type.i32, name="beam_idx")
    beam_idx.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beam_idx])
    for name in past_names:
        port = model.input(name)
        consumers = port.get_target_inputs()
        gathered = ops.gather(port, beam_idx, ops.constant(0))
        for consumer in consumers:
            consumer.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()


def _start_empty(model: Any, num_heads: int, head_dim: int) -> None:
    shape_of_ids = ops.shape_of(model.input("input_ids"), "i64")
    batch = ops.gather(shape_of_ids, ops.constant([0]), ops.constant(0))
    shape = ops.concat([batch, ops.constant(np.array([num_heads, 0, head_dim], np.int64))], 0)
    empty = ops.broadcast(ops.constant(np.float32(0)), shape)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty])
