"""The ground of the core: sequences, the values of a step, and what follows a sequence's output."""
