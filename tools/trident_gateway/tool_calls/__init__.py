"""Tool calls and reasoning: how an answer is constrained to them, and how they are read from its text."""
