"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3.

Owns the network's structure and the names of its tensors. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.model_config import ModelConfig
from trident_compiler.families.ops import Value, Vocabulary
from trident_compiler.weights.sharding import Split
from trident_compiler.weights.weights import WeightSource

_EMBEDDINGS = "model.embed_tokens.weight"


def llama(net: Vocabulary[Value], config: ModelConfig, weights: WeightSource) -> Value:
    """Write the whole network, or one device's share of it; returns the logits `[R, vocab]`.

    Pre-norm decoder layers of grouped-query attention with rotary positions and a SwiGLU feed-forward; the members
    differ in biases, in norms on queries and keys, and in the sliding window.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    hidden_size, head_dim = config.hidden_size, config.head_dim
    query_size, key_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    num_heads = config.num_heads // weights.num_devices
    num_kv_heads = config.num_kv_heads // weights.num_devices

    def divided(x: Value, name: str, out_size: int, *, bias: bool = False) -> Value:
        weight = weights.matrix(f"{name}.weight", out_size, hidden_size, Split.OUT)
        return net.linear(x, weight, weights.vector(f"{name}.bias", out_size, Split.OUT) if bias else None)

    def united(x: Value, name: str, in_size: int, *, bias: bool = False) -> Value:
        weight = weights.matrix(f"{name}.weight", hidden_size, in_size, Split.IN)
        return net.linear(x, weight, weights.vector(f"{name}.bias", hidden_size) if bias else None, summed=True)

    def norm(x: Value, name: str, size: int = hidden_size) -> Value:
        return net.rms_norm(x, weights.vector(f"{name}.weight", size), config.rms_norm_eps)

    def turned(x: Value, num_heads: int, norm_name: str) -> Value:
        x = net.split_heads(x, num_heads)
        if config.qk_norm:
            x = norm(x, norm_name, head_dim)
        return net.rotary(x, config.inverse_frequencies)

    hidden = net.embedding(weights.embedding(_EMBEDDINGS, config.vocab_size, hidden_size))
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"

        normed = norm(hidden, f"{prefix}.input_layernorm")
        query = divided(normed, f"{prefix}.self_attn.q_proj", query_size, bias=config.qkv_bias)
        key = divided(normed, f"{prefix}.self_attn.k_proj", key_size, bias=config.qkv_bias)
        value = divided(normed, f"{prefix}.self_attn.v_proj", key_size, bias=config.qkv_bias)
        attended = net.attention(
            layer,
            turned(query, num_heads, f"{prefix}.self_attn.q_norm"),
            turned(key, num_kv_heads, f"{prefix}.self_attn.k_norm"),
            net.split_heads(value, num_kv_heads),
            scale=head_dim**-0.5,
            sliding_window=config.sliding_windows[layer],
        )
        hidden = net.add(hidden, united(attended, f"{prefix}.self_attn.o_proj", query_size, bias=config.output_bias))

        normed = norm(hidden, f"{prefix}.post_attention_layernorm")
        gate = divided(normed, f"{prefix}.mlp.gate_proj", config.intermediate_size)
        up = divided(normed, f"{prefix}.mlp.up_proj", config.intermediate_size)
        gated = net.multiply(net.silu(gate), up)
        hidden = net.add(hidden, united(gated, f"{prefix}.mlp.down_proj", config.intermediate_size))

    hidden = norm(net.select_rows(hidden), "model.norm")
    head = _EMBEDDINGS if config.tie_word_embeddings else "lm_head.weight"
    return net.gathered(net.linear(hidden, weights.head(head, config.vocab_size, hidden_size, Split.OUT)))
