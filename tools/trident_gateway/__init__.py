"""The OpenAI door: a process of its own between OpenAI's clients and tritonserver."""
