"""The contract between the models of a repository, tensor by tensor.

Owns the names, dtypes and shapes of everything that crosses a model's border; every config.pbtxt is rendered from
these tables and every shell reads its inputs by them. Never holds a value. Names are those of tensorrtllm_backend's
ensemble wherever that has one. Shapes are without the batch dimension, which is 1 for a request.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model.

    Args:
        name: as clients and configurations spell it.
        dtype: Triton's name without the prefix: STRING, BOOL, INT32, INT64, UINT64 or FP32.
        dims: shape without the batch dimension; -1 is variable.
        doc: what it means, for people.
        optional: inputs only: a request may leave it out.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    doc: str
    optional: bool = False


TEXT_INPUT = TensorSpec("text_input", "STRING", (1,), "the prompt, UTF-8; or give messages", optional=True)
MESSAGES = TensorSpec(
    "messages", "STRING", (1,), 'chat messages as JSON: [{"role": "user", "content": "..."}, ...]', optional=True
)
# Optional for Triton, required by the core: Triton never starts an ensemble's step that lacks a required input, and so
# never answers.
MAX_TOKENS = TensorSpec("max_tokens", "INT32", (1,), "required: the most tokens to generate, at least 1", optional=True)
STREAM = TensorSpec("stream", "BOOL", (1,), "send tokens as they come (default false)", optional=True)
TEMPERATURE = TensorSpec("temperature", "FP32", (1,), "0 is greedy; default: the checkpoint's", optional=True)
TOP_K = TensorSpec("top_k", "INT32", (1,), "keep the k most likely tokens; 0 keeps all", optional=True)
TOP_P = TensorSpec("top_p", "FP32", (1,), "keep the likeliest tokens of this total probability", optional=True)
SEED = TensorSpec("seed", "UINT64", (1,), "makes sampling repeatable; drawn when unset", optional=True)
END_ID = TensorSpec("end_id", "INT32", (1,), "a further token id that ends the text", optional=True)
IGNORE_EOS = TensorSpec("ignore_eos", "BOOL", (1,), "generate max_tokens whatever comes (benchmarks)", optional=True)
PRIORITY = TensorSpec("priority", "INT32", (1,), "lower goes first within a tenant (default 0)", optional=True)
TENANT = TensorSpec("tenant", "STRING", (1,), "whose request: tenants share the engine fairly", optional=True)
TIMEOUT_MS = TensorSpec("timeout_ms", "INT32", (1,), "for waiting and running together, then an error", optional=True)
CACHE_SALT = TensorSpec("cache_salt", "STRING", (1,), "share cached prefixes with this salt alone", optional=True)
REUSE_CACHE = TensorSpec("reuse_cache", "BOOL", (1,), "use and leave cached prefixes (default true)", optional=True)

INPUT_IDS = TensorSpec("input_ids", "INT32", (-1,), "the prompt's token ids")
FLOW_CONTROL = TensorSpec(
    "flow_control", "BOOL", (1,), "chunks of this stream will be acknowledged by postprocessing", optional=True
)

OUTPUT_IDS = TensorSpec("output_ids", "INT32", (-1,), "the token ids of this response")
CONTEXT_IDS = TensorSpec("context_ids", "INT32", (-1,), "the few preceding ids that decoding needs")
CHUNK = TensorSpec("chunk", "INT64", (4,), "acknowledgement table, slot, acknowledgement, and 1 on the last chunk")
TEXT_OUTPUT = TensorSpec("text_output", "STRING", (1,), "the text of this response")
FINISH_REASON = TensorSpec("finish_reason", "STRING", (1,), "on the last response alone: eos or length")
NUM_INPUT_TOKENS = TensorSpec("num_input_tokens", "INT32", (1,), "length of the prompt; on the last response alone")
NUM_OUTPUT_TOKENS = TensorSpec("num_output_tokens", "INT32", (1,), "tokens generated; on the last response alone")

SAMPLING_INPUTS = (TEMPERATURE, TOP_K, TOP_P, SEED, END_ID, IGNORE_EOS)
SCHEDULING_INPUTS = (PRIORITY, TENANT, TIMEOUT_MS, CACHE_SALT, REUSE_CACHE)
PREPROCESSING_INPUTS = (TEXT_INPUT, MESSAGES, MAX_TOKENS)
PREPROCESSING_OUTPUTS = (INPUT_IDS, FLOW_CONTROL)
CORE_INPUTS = (INPUT_IDS, MAX_TOKENS, STREAM, *SAMPLING_INPUTS, *SCHEDULING_INPUTS, FLOW_CONTROL)
CORE_REPORTS = (FINISH_REASON, NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS)
CORE_OUTPUTS = (OUTPUT_IDS, CONTEXT_IDS, CHUNK, *CORE_REPORTS)
POSTPROCESSING_INPUTS = (OUTPUT_IDS, CONTEXT_IDS, CHUNK)
POSTPROCESSING_OUTPUTS = (TEXT_OUTPUT,)
ENSEMBLE_INPUTS = (TEXT_INPUT, MESSAGES, MAX_TOKENS, STREAM, *SAMPLING_INPUTS, *SCHEDULING_INPUTS)
ENSEMBLE_OUTPUTS = (TEXT_OUTPUT, OUTPUT_IDS, *CORE_REPORTS)

#: Request parameters that Triton itself or its clients put beside the tensors; any other is an unknown field.
KNOWN_PARAMETERS = frozenset({
    "id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "headers",
    "binary_data_output", "triton_enable_empty_final_response", "triton_final_response",
})  # fmt: skip
