"""Postprocessing: token ids to text, incrementally and without state."""
