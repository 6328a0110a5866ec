"""Which limits fit into the memory of a machine."""
