"""Choosing tokens: every row of a step in one batched operation."""
