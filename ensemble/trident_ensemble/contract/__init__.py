"""What all packages agree on: tensors, errors, settings, names of files, the chunk header, the engine's manifest."""
