"""Architectures of GGUF files, each with the keys and the names of a type of Hugging Face model."""
