"""OpenAI's API: what clients may send, what the ensemble is asked for it, and what they are answered."""
