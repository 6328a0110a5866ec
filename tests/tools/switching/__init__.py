"""How a model gets another engine."""
