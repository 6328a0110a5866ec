"""What clients ask for: inputs and parameters, read and checked."""
