"""Guided decoding: grammars of every kind, followed by llguidance, and the masks of a step's rows."""
