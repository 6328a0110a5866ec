"""How a model gets another engine: what may follow what, and the switch in a running server."""
