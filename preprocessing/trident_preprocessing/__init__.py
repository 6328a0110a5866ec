"""Preprocessing: a prompt, or chat messages, to token ids."""
