"""Messages become one text by a chat template."""
