"""Which sequence's keys and values lie where in the KV cache."""
