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
        doc: what it means.
        optional: inputs only: a request may leave it out.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    doc: str
    optional: bool = False


def _input(name: str, dtype: str, doc: str, dims: tuple[int, ...] = (1,)) -> TensorSpec:
    """Return an input that clients may give.

    It is optional for Triton even where the core requires it: Triton never starts an ensemble's step that lacks a
    required input, and so never answers.
    """
    return TensorSpec(name, dtype, dims, doc, optional=True)


TEXT_INPUT = _input("text_input", "STRING", "the prompt, UTF-8; or give messages")
ADD_SPECIAL_TOKENS = _input(
    "add_special_tokens",
    "BOOL",
    "text_input gets the special tokens that the tokenizer adds, such as a beginning (default true)",
)
PROMPT_TOKEN_IDS = _input("prompt_token_ids", "INT32", "the prompt as token ids, instead of a text", (-1,))
MESSAGES = _input("messages", "STRING", 'chat messages as JSON: [{"role": "user", "content": "..."}, ...]')
TOOLS = _input("tools", "STRING", "tools for the chat template, as a JSON list")
CHAT_TEMPLATE_KWARGS = _input("chat_template_kwargs", "STRING", "further arguments of the chat template, as JSON")
ADD_GENERATION_PROMPT = _input("add_generation_prompt", "BOOL", "messages end where the answer begins (default true)")
CONTINUE_FINAL_MESSAGE = _input("continue_final_message", "BOOL", "the answer goes on with the last message")
SANITIZE_CONTROL_TOKENS = _input(
    "sanitize_control_tokens", "BOOL", "what messages say is text, never a control token (default true)"
)
TRUNCATE_PROMPT_TOKENS = _input("truncate_prompt_tokens", "INT32", "cut a longer prompt to this many tokens")
TRUNCATION_SIDE = _input("truncation_side", "STRING", "where it is cut: left (default) or right")
BAD_WORDS = _input("bad_words", "STRING", "texts that must not be generated", (-1,))

MAX_TOKENS = _input("max_tokens", "INT32", "the most tokens to generate; -1, the default: what the context leaves")
MIN_TOKENS = _input("min_tokens", "INT32", "the fewest tokens before the text may end (default 0)")
MIN_LENGTH = _input("min_length", "INT32", "another name of min_tokens")
STREAM = _input("stream", "BOOL", "send tokens as they come (default false)")
STREAM_INTERVAL_MS = _input(
    "stream_interval_ms",
    "INT32",
    "with stream: after the first, the least time between responses (default: the server's)",
)
NUM_RETURN_SEQUENCES = _input("num_return_sequences", "INT32", "answers to one prompt (default 1)")

TEMPERATURE = _input("temperature", "FP32", "0 is greedy; default: the checkpoint's")
TOP_K = _input("top_k", "INT32", "keep the k most likely tokens; 0 keeps all")
TOP_P = _input("top_p", "FP32", "keep the most likely tokens that together reach this probability")
MIN_P = _input("min_p", "FP32", "drop tokens whose probability is below this share of the highest")
REPETITION_PENALTY = _input(
    "repetition_penalty", "FP32", "above 1: makes tokens of prompt and output less likely (default 1)"
)
PRESENCE_PENALTY = _input(
    "presence_penalty", "FP32", "subtracted from the logits of tokens that the output has (default 0)"
)
FREQUENCY_PENALTY = _input("frequency_penalty", "FP32", "the same, once for each time (default 0)")
LOGIT_BIAS = _input("logit_bias", "STRING", 'added to logits, as JSON by token id: {"13": -5.0}')
SEED = _input("seed", "UINT64", "makes sampling repeatable; drawn and returned when unset")
BEAM_WIDTH = _input("beam_width", "INT32", "only 1: there is no beam search")
LENGTH_PENALTY = _input("length_penalty", "FP32", "only 1: it belongs to beam search")

STOP_WORDS = _input("stop_words", "STRING", "texts that end the output and are left out of it", (-1,))
STOP_TOKEN_IDS = _input("stop_token_ids", "INT32", "further token ids that end the output", (-1,))
INCLUDE_STOP = _input("include_stop_str_in_output", "BOOL", "leave them in (default false)")
END_ID = _input("end_id", "INT32", "a further token id that ends the text, as the checkpoint's own do; -1 for none")
PAD_ID = _input("pad_id", "INT32", "pads output_ids of sequences of different length (default 0)")
IGNORE_EOS = _input("ignore_eos", "BOOL", "generate past the end of text, to max_tokens (benchmarks)")
SKIP_SPECIAL_TOKENS = _input("skip_special_tokens", "BOOL", "leave special tokens out of the text (default true)")
ECHO = _input("echo", "BOOL", "the output begins with the prompt (default false)")
EXCLUDE_INPUT = _input("exclude_input_in_output", "BOOL", "the opposite of echo (default true)")
GUIDE_TYPE = _input(
    "guided_decoding_guide_type", "STRING", "json, json_schema, regex, choice, ebnf_grammar or structural_tag"
)
GUIDE = _input("guided_decoding_guide", "STRING", "the schema, expression, JSON list of choices, grammar, or tag")

RETURN_LOG_PROBS = _input("return_log_probs", "BOOL", "return output_log_probs and cum_log_probs")
RETURN_PROMPT_LOG_PROBS = _input("return_prompt_log_probs", "BOOL", "return prompt_log_probs")
NUM_TOP_LOG_PROBS = _input("num_top_log_probs", "INT32", "with each of them, this many of the most likely tokens")
RETURN_TOKEN_BYTES = _input("return_token_bytes", "BOOL", "with log probabilities: the bytes of each of their tokens")
MARKER_IDS = _input(
    "marker_ids", "INT32", "tokens that `markers` reports where they stand in the text, which leaves them out", (-1,)
)
RETURN_PERF_METRICS = _input("return_perf_metrics", "BOOL", "return times, cache blocks and draft tokens")
RETURN_NUM_INPUT_TOKENS = _input("return_num_input_tokens", "BOOL", "return num_input_tokens (default true)")
RETURN_NUM_OUTPUT_TOKENS = _input("return_num_output_tokens", "BOOL", "return num_output_tokens (default true)")
RETURN_CONTEXT_LOGITS = _input("return_context_logits", "BOOL", "only false; use return_prompt_log_probs")
RETURN_GENERATION_LOGITS = _input("return_generation_logits", "BOOL", "only false; use return_log_probs")

PRIORITY = _input("priority", "INT32", "lower goes first within a tenant (default 0)")
TENANT = _input("tenant", "STRING", "whose request it is: tenants share the engine fairly")
TIMEOUT_MS = _input("timeout_ms", "INT32", "for waiting and running together, then an error")
CACHE_SALT = _input("cache_salt", "STRING", "share cached prefixes only with this salt")
REUSE_CACHE = _input("reuse_cache", "BOOL", "use and leave cached prefixes (default true)")
STOP = _input("stop", "BOOL", "generate nothing: end the request that has the same request id")

RANDOM_SEED = _input("random_seed", "UINT64", "another name of seed")
REQUEST_OUTPUT_LEN = _input("request_output_len", "INT32", "another name of max_tokens")
STREAMING = _input("streaming", "BOOL", "another name of stream")
RUNTIME_TOP_K = _input("runtime_top_k", "INT32", "another name of top_k")
RUNTIME_TOP_P = _input("runtime_top_p", "FP32", "another name of top_p")
LEN_PENALTY = _input("len_penalty", "FP32", "another name of length_penalty")
#: Inputs that mean the same as another; a request may not give both and mean two things.
ALIASES = {
    MIN_LENGTH: MIN_TOKENS, RANDOM_SEED: SEED, REQUEST_OUTPUT_LEN: MAX_TOKENS, STREAMING: STREAM, RUNTIME_TOP_K: TOP_K,
    RUNTIME_TOP_P: TOP_P, LEN_PENALTY: LENGTH_PENALTY,
}  # fmt: skip

INPUT_LENGTHS = _input("input_lengths", "INT32", "length of input_ids, if it is given")
INPUT_IDS = TensorSpec("input_ids", "INT32", (-1,), "the prompt's token ids")
BAD_WORDS_LIST = _input(
    "bad_words_list",
    "INT32",
    "token ids of bad words one after another; below, where each ends; padded with -1",
    (2, -1),
)
FLOW_CONTROL = _input("flow_control", "BOOL", "chunks of this stream will be acknowledged by postprocessing")
#: What preprocessing makes, and the client's input that it makes it from. Errors name the latter.
PREPARED = {INPUT_IDS: TEXT_INPUT, BAD_WORDS_LIST: BAD_WORDS}

OUTPUT_IDS = TensorSpec("output_ids", "INT32", (-1, -1), "[sequences, tokens of this response], padded with pad_id")
CHUNK = TensorSpec("chunk", "INT64", (-1,), "what postprocessing must know of this response, packed by `chunk_header`")
TEXT_OUTPUT = TensorSpec("text_output", "STRING", (-1,), "the text of this response, one for each of its sequences")

SEQUENCE_INDEX = TensorSpec(
    "sequence_index", "INT32", (-1,), "which of num_return_sequences; in every response where there are several"
)
OUTPUT_LOG_PROBS = TensorSpec(
    "output_log_probs", "FP32", (-1, -1), "[sequences, tokens of this response], padded with 0"
)
TOP_LOG_PROBS = TensorSpec(
    "top_log_probs", "FP32", (-1, -1), "[output tokens, num_top_log_probs], the most likely first"
)
TOP_LOG_PROB_IDS = TensorSpec("top_log_prob_ids", "INT32", (-1, -1), "their token ids")

#: Stands before the digits of a token that the text leaves out: a special token that is skipped, or a marker.
NO_TEXT_MARK = "!"
OUTPUT_TOKEN_BYTES = TensorSpec(
    "output_token_bytes",
    "STRING",
    (-1, -1),
    "[sequences, tokens of this response], as hexadecimal digits, behind ! if the token is no text",
)
TOP_TOKEN_BYTES = TensorSpec("top_token_bytes", "STRING", (-1, -1), "the bytes of top_log_prob_ids, likewise")
PROMPT_TOKEN_BYTES = TensorSpec("prompt_token_bytes", "STRING", (-1,), "the bytes of the prompt's tokens, likewise")
PROMPT_TOP_TOKEN_BYTES = TensorSpec("prompt_top_token_bytes", "STRING", (-1, -1), "of prompt_top_log_prob_ids")
MARKERS = TensorSpec(
    "markers",
    "INT32",
    (-1, 3),
    "the sequence's row in this response, characters of its text_output before the marker, its token id",
)

FINISH_REASON = TensorSpec("finish_reason", "STRING", (-1,), "eos, stop, length or cancelled")
STOP_REASON = TensorSpec("stop_reason", "STRING", (-1,), "the stop word, or stop token id, that was met")
NUM_INPUT_TOKENS = TensorSpec("num_input_tokens", "INT32", (1,), "length of the prompt")
NUM_OUTPUT_TOKENS = TensorSpec("num_output_tokens", "INT32", (-1,), "tokens generated")
NUM_CACHED_TOKENS = TensorSpec(
    "num_cached_tokens", "INT32", (1,), "tokens of the prompt that were found in the KV cache"
)
USED_SEED = TensorSpec("used_seed", "UINT64", (1,), "what makes this request repeatable")
SEQUENCE_LENGTH = TensorSpec("sequence_length", "INT32", (-1,), "ids of each sequence in output_ids")
BATCH_INDEX = TensorSpec("batch_index", "INT32", (1,), "always 0")
CUM_LOG_PROBS = TensorSpec("cum_log_probs", "FP32", (-1,), "the sum of the sequence's output_log_probs")
PROMPT_LOG_PROBS = TensorSpec("prompt_log_probs", "FP32", (-1,), "of the prompt's tokens; 0 for the first")
PROMPT_TOP_LOG_PROBS = TensorSpec(
    "prompt_top_log_probs", "FP32", (-1, -1), "as top_log_probs, from the second token on"
)
PROMPT_TOP_LOG_PROB_IDS = TensorSpec("prompt_top_log_prob_ids", "INT32", (-1, -1), "their token ids")
ARRIVAL_TIME = TensorSpec("arrival_time_ns", "INT64", (1,), "when the request came, since 1970")
FIRST_SCHEDULED_TIME = TensorSpec("first_scheduled_time_ns", "INT64", (-1,), "when its prompt was begun")
FIRST_TOKEN_TIME = TensorSpec("first_token_time_ns", "INT64", (-1,), "when the first token was there")
LAST_TOKEN_TIME = TensorSpec("last_token_time_ns", "INT64", (-1,), "when the last one was")
REUSED_BLOCKS = TensorSpec("kv_cache_reused_blocks", "INT32", (1,), "KV blocks found in the cache")
NEW_BLOCKS = TensorSpec("kv_cache_alloc_new_blocks", "INT32", (1,), "KV blocks filled by it")
TOTAL_BLOCKS = TensorSpec("kv_cache_alloc_total_blocks", "INT32", (1,), "both")
NUM_DRAFT_TOKENS = TensorSpec("total_draft_tokens", "INT32", (-1,), "draft tokens")
NUM_ACCEPTED_TOKENS = TensorSpec("total_accepted_draft_tokens", "INT32", (-1,), "draft tokens that were accepted")
ACCEPTANCE_RATE = TensorSpec(
    "acceptance_rate", "FP32", (-1,), "accepted draft tokens by draft tokens; 0 where there were none"
)

SAMPLING_INPUTS = (
    TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY, LOGIT_BIAS, SEED,
    RANDOM_SEED, MIN_TOKENS, MIN_LENGTH, NUM_RETURN_SEQUENCES, BEAM_WIDTH, LENGTH_PENALTY, GUIDE_TYPE, GUIDE,
)  # fmt: skip
STOPPING_INPUTS = (STOP_WORDS, STOP_TOKEN_IDS, INCLUDE_STOP, END_ID, PAD_ID, IGNORE_EOS)
OUTPUT_CHOICES = (
    SKIP_SPECIAL_TOKENS, ECHO, EXCLUDE_INPUT, RETURN_LOG_PROBS, RETURN_PROMPT_LOG_PROBS, NUM_TOP_LOG_PROBS,
    RETURN_TOKEN_BYTES, MARKER_IDS, RETURN_PERF_METRICS, RETURN_NUM_INPUT_TOKENS, RETURN_NUM_OUTPUT_TOKENS,
    RETURN_CONTEXT_LOGITS, RETURN_GENERATION_LOGITS,
)  # fmt: skip
SCHEDULING_INPUTS = (PRIORITY, TENANT, TIMEOUT_MS, CACHE_SALT, REUSE_CACHE)
REQUEST_INPUTS = (
    MAX_TOKENS, STREAM, STREAM_INTERVAL_MS, *SAMPLING_INPUTS, *STOPPING_INPUTS, *OUTPUT_CHOICES, *SCHEDULING_INPUTS,
    STOP,
)  # fmt: skip
PROMPT_INPUTS = (
    TEXT_INPUT, ADD_SPECIAL_TOKENS, PROMPT_TOKEN_IDS, MESSAGES, TOOLS, CHAT_TEMPLATE_KWARGS, ADD_GENERATION_PROMPT,
    CONTINUE_FINAL_MESSAGE, SANITIZE_CONTROL_TOKENS, TRUNCATE_PROMPT_TOKENS, TRUNCATION_SIDE, BAD_WORDS,
)  # fmt: skip
#: With two inputs of the core: a step without any input would never start, and so never be refused.
PREPROCESSING_INPUTS = (*PROMPT_INPUTS, MAX_TOKENS, STOP)
PREPROCESSING_OUTPUTS = (INPUT_IDS, BAD_WORDS_LIST, FLOW_CONTROL)
#: For clients that bring their own tokenizer; the names are those of tensorrtllm_backend's core.
TOKEN_CLIENT_INPUTS = (INPUT_LENGTHS, REQUEST_OUTPUT_LEN, STREAMING, RUNTIME_TOP_K, RUNTIME_TOP_P, LEN_PENALTY)
CORE_STEP_INPUTS = (INPUT_IDS, BAD_WORDS_LIST, *REQUEST_INPUTS, FLOW_CONTROL)
CORE_INPUTS = (*CORE_STEP_INPUTS, *TOKEN_CLIENT_INPUTS)
#: In every response that has them.
CORE_PARTS = (
    SEQUENCE_INDEX, OUTPUT_LOG_PROBS, TOP_LOG_PROBS, TOP_LOG_PROB_IDS, OUTPUT_TOKEN_BYTES, TOP_TOKEN_BYTES,
)  # fmt: skip
#: Only in a sequence's last response, and NUM_INPUT_TOKENS in a request's first: a tensor costs more than a token.
CORE_REPORTS = (
    FINISH_REASON, STOP_REASON, NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS, NUM_CACHED_TOKENS, USED_SEED, SEQUENCE_LENGTH,
    BATCH_INDEX, CUM_LOG_PROBS, PROMPT_LOG_PROBS, PROMPT_TOP_LOG_PROBS, PROMPT_TOP_LOG_PROB_IDS, PROMPT_TOKEN_BYTES,
    PROMPT_TOP_TOKEN_BYTES, ARRIVAL_TIME, FIRST_SCHEDULED_TIME, FIRST_TOKEN_TIME, LAST_TOKEN_TIME, REUSED_BLOCKS,
    NEW_BLOCKS, TOTAL_BLOCKS, NUM_DRAFT_TOKENS, NUM_ACCEPTED_TOKENS, ACCEPTANCE_RATE,
)  # fmt: skip
CORE_OUTPUTS = (OUTPUT_IDS, CHUNK, *CORE_PARTS, *CORE_REPORTS)
POSTPROCESSING_INPUTS = (OUTPUT_IDS, CHUNK)
POSTPROCESSING_OUTPUTS = (TEXT_OUTPUT, MARKERS)
ENSEMBLE_INPUTS = (*PROMPT_INPUTS, *REQUEST_INPUTS)
ENSEMBLE_OUTPUTS = (TEXT_OUTPUT, MARKERS, OUTPUT_IDS, *CORE_PARTS, *CORE_REPORTS)

#: Request parameters that Triton itself or its clients put beside the tensors; any other is an unknown field.
KNOWN_PARAMETERS = frozenset({
    "id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "headers",
    "binary_data_output", "triton_enable_empty_final_response", "triton_final_response", "Streaming",
})  # fmt: skip
