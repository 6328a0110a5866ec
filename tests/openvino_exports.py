"""Models exported to OpenVINO from tiny checkpoints, as optimum-intel exports them: stateful, with `beam_idx`.

optimum-intel itself takes another transformers than this project's. What it writes was compared with what this writes:
the same inputs, the same operations, caches that are variables and begin empty, compressed constants of the same forms.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
from openvino import opset15 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

Node = Any
NETWORK = "openvino_model.xml"
_LIVES_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def export(checkpoint: Path, folder: Path, *, half: bool = False) -> Path:
    """Export a checkpoint, with constants in float32 or in float16."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
    return _save(convert(model), checkpoint, folder, half=half)


def edited(exported: Path, folder: Path, edit: Callable[[Any], None]) -> Path:
    """Save an exported model with another network."""
    network = ov.Core().read_model(exported / NETWORK)
    edit(network)
    network.validate_nodes_and_infer_types()
    return _save(network, exported, folder)


def _save(network: Any, source: Path, folder: Path, *, half: bool = False) -> Path:
    folder.mkdir(parents=True)
    ov.save_model(network, folder / NETWORK, compress_to_fp16=half)
    for path in (*(source / name for name in _LIVES_BESIDE), *source.glob("*.jinja")):
        shutil.copy(path, folder)
    return folder


class _WithCache(torch.nn.Module):
    """A model whose past keys and values are inputs, and whose present ones are outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
        cache = DynamicCache()
        for keys, values in past:
            layer = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            cache.layers.append(layer)
        outputs = self._model(
            input_ids=input_ids,
            attention_mask=self._mask(input_ids, attention_mask),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (outputs.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))

    def _mask(self, input_ids: Any, attention_mask: Any) -> Any:
        """What the model takes as its mask: the padding, or where layers have windows, a whole mask for each kind."""
        config = self._model.config
        if not getattr(config, "sliding_window", None) or not getattr(config, "use_sliding_window", True):
            return attention_mask
        windowed = _additive_mask(input_ids, attention_mask, config.sliding_window)
        if len(set(getattr(config, "layer_types", None) or ())) < 2:
            return windowed
        return {"sliding_attention": windowed, "full_attention": _additive_mask(input_ids, attention_mask, None)}


def _additive_mask(input_ids: Any, padding: Any, window: int | None) -> Any:
    """A mask in the very operations, and their order, of transformers' mask functions as optimum-intel traces them."""
    total, new = padding.shape[1], input_ids.shape[1]
    queries = (torch.arange(new) + (total - new)).reshape(1, 1, -1, 1)
    keys = torch.arange(total).reshape(1, 1, 1, -1)
    seen = torch.ones((), dtype=torch.bool)
    if window is not None:
        seen = seen & (keys > queries - window)
    seen = torch.ones((), dtype=torch.bool) & (seen & (keys <= queries))
    seen = (seen & padding.bool()[:, None, None]).expand(padding.shape[0], 1, new, total)
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, :, :, :total]


def convert(model: Any) -> Any:
    """The stateful network of a model of transformers."""
    config = model.config
    heads, num_layers = config.num_key_value_heads, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sequences, new, old = 2, 3, 5
    example = {
        "input_ids": torch.zeros(sequences, new, dtype=torch.int64),
        "attention_mask": torch.ones(sequences, old + new, dtype=torch.int64),
        "position_ids": torch.arange(old, old + new).expand(sequences, new),
        "past": [tuple(torch.randn(2, sequences, heads, old, head_dim)) for _ in range(num_layers)],
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = ov.convert_model(_WithCache(model), example_input=example)
    names = [f"{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]
    for port, name in zip(network.inputs[3:], names, strict=True):
        port.get_tensor().set_names({f"past_key_values.{name}"})
    for port, name in zip(network.outputs, ("logits", *(f"present.{name}" for name in names)), strict=True):
        port.get_tensor().set_names({name})
    _reorder(network)
    apply_make_stateful_transformation(network, {f"past_key_values.{name}": f"present.{name}" for name in names})
    _begin_empty(network, heads, head_dim)
    network.validate_nodes_and_infer_types()
    return network


def _reorder(network: Any) -> None:
    """Let an input say which past each sequence goes on from, as beam search needs it."""
    beams = ops.parameter([-1], ov.Type.i32, "beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    network.add_parameters([beams])
    for port in network.inputs[3:-1]:
        users = port.get_target_inputs()
        chosen = ops.gather(port.get_node(), beams, ops.constant(0))
        for user in users:
            user.replace_source_output(chosen.output(0))


def _begin_empty(network: Any, heads: int, head_dim: int) -> None:
    tokens = next(port for port in network.inputs if "input_ids" in port.get_names())
    sequences = ops.gather(ops.shape_of(tokens, "i64"), ops.constant([0]), ops.constant(0))
    for operation in network.get_ops():
        if operation.get_type_name() == "ReadValue":
            shape = ops.concat([sequences, ops.constant(np.array([heads, 0, head_dim]))], 0)
            operation.set_arguments([ops.broadcast(ops.constant(0.0, ov.Type.f32), shape).output(0)])


def compress(network: Any, group: int | None) -> None:
    """Put compressed constants in the place of matrices: int4 in groups, tables in int8; or all of them in int8."""
    for operation in network.get_ordered_ops():
        for port in operation.inputs():
            source = port.get_source_output().get_node()
            if operation.get_type_name() in {"MatMul", "Gather"} and source.get_type_name() == "Constant":
                values = source.data
                if values.ndim == 2 and values.dtype == np.float32 and min(values.shape) > 1:
                    inner = group if operation.get_type_name() == "MatMul" else None
                    port.replace_source_output(_compressed(np.array(values), inner).output(0))


def _compressed(values: npt.NDArray[np.float32], group: int | None) -> Node:
    """Rows in asymmetric int8, or groups of values in asymmetric int4, as NNCF writes them."""
    stored, zeros, scales = quantize(values, group)
    constants = [_int4(each) if group else ops.constant(each) for each in (stored, zeros)]
    centred = ops.subtract(*(ops.convert(each, ov.Type.f16) for each in constants))
    scaled = ops.multiply(centred, ops.constant(scales))
    whole = ops.reshape(scaled, ops.constant(list(values.shape)), special_zero=False) if group else scaled
    return ops.convert(whole, ov.Type.f32)


def quantize(
    values: npt.NDArray[np.float32], group: int | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Stored values, zero points and scales, of `(stored - zero) * scale`: `[out, in]`, or `[out, groups, group]`."""
    most = 255 if group is None else 15
    parts = values if group is None else values.reshape(len(values), -1, group)
    low, high = np.minimum(parts.min(-1, keepdims=True), 0), np.maximum(parts.max(-1, keepdims=True), 0)
    scales = ((high - low) / most).astype(np.float16)
    zeros = np.rint(-low / scales).astype(np.uint8)
    stored = np.clip(np.rint(parts / scales) + zeros, 0, most).astype(np.uint8)
    return stored, zeros, scales


def _int4(values: npt.NDArray[np.uint8]) -> Node:
    flat = np.append(values.reshape(-1), np.zeros(values.size % 2, np.uint8))
    tensor = ov.Tensor(ov.Type.u4, ov.Shape(list(values.shape)))
    tensor.data.reshape(-1)[:] = flat[0::2] | flat[1::2] << 4
    return ops.constant(tensor)


def restored(values: npt.NDArray[np.float32], group: int | None) -> npt.NDArray[np.float32]:
    """The numbers that compressed values stand for."""
    stored, zeros, scales = quantize(values, group)
    return ((stored.astype(np.float32) - zeros) * scales.astype(np.float32)).reshape(values.shape)
