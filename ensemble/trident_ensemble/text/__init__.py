"""How token ids become text."""
