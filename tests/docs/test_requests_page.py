"""The documentation of requests against the contract itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trident_ensemble.contract import tensors

DOCS = Path(__file__).parents[2] / "docs"
#: All that tensorrtllm_backend's ensemble and core declare.
THEIR_INPUTS = """
    text_input max_tokens stop_words stream exclude_input_in_output end_id pad_id top_k top_p temperature seed
    repetition_penalty presence_penalty frequency_penalty min_tokens num_return_sequences bad_words return_log_probs
    return_perf_metrics return_num_input_tokens return_num_output_tokens guided_decoding_guide_type
    guided_decoding_guide lora_task_id beam_width prompt_vocab_size length_penalty return_context_logits
    return_generation_logits decoder_text_input prompt_embedding_table prompt_table_extra_id embedding_bias_words
    embedding_bias_weights lora_weights lora_config min_length random_seed
"""
THEIR_CORE_INPUTS = """
    input_ids input_lengths request_output_len streaming stop stop_words_list bad_words_list runtime_top_k runtime_top_p
    len_penalty random_seed min_length embedding_bias draft_input_ids draft_logits draft_acceptance_threshold
    runtime_top_p_min runtime_top_p_decay runtime_top_p_reset_ids early_stopping beam_search_diversity_rate
"""
THEIR_OUTPUTS = """
    text_output cum_log_probs output_log_probs num_input_tokens num_output_tokens batch_index sequence_index
    arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns kv_cache_alloc_new_blocks
    kv_cache_reused_blocks kv_cache_alloc_total_blocks context_logits generation_logits acceptance_rate
    total_accepted_draft_tokens total_draft_tokens
"""


def _verdicts(section: str) -> dict[str, str]:
    """Tensor to what the table of a section says of it: same, alias or error."""
    text = (DOCS / "tensorrtllm_backend.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = (line.split("|")[1:3] for line in text.splitlines() if line.startswith("|"))
    return {name: verdict.strip() for names, verdict in rows for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize(
    ("section", "theirs", "ours"),
    [
        ("Inputs of `ensemble`", THEIR_INPUTS, tensors.ENSEMBLE_INPUTS),
        ("Outputs of `ensemble`", THEIR_OUTPUTS, tensors.ENSEMBLE_OUTPUTS),
        ("The core", THEIR_CORE_INPUTS, (*tensors.CORE_INPUTS, *tensors.CORE_OUTPUTS)),
    ],
)
def test_requests_page_the_table_says_of_every_tensor_of_tensorrtllm_backend_what_becomes_of_it(
    section: str, theirs: str, ours: tuple[tensors.TensorSpec, ...]
) -> None:
    verdicts = _verdicts(section)
    assert not set(theirs.split()) - verdicts.keys()
    declared = {spec.name for spec in ours}
    for name, verdict in verdicts.items():
        assert verdict in {"same", "alias", "error"}, name
        assert (name in declared) == (verdict != "error"), name


def test_requests_page_every_tensor_of_the_ensemble_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", (DOCS / "requests.md").read_text()))
    names = {spec.name for spec in (*tensors.ENSEMBLE_INPUTS, *tensors.ENSEMBLE_OUTPUTS)}
    assert not names - explained
