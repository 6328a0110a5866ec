"""The core: scheduler, KV blocks, engine host, sampling and responses."""
