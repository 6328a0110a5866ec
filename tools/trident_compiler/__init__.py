"""The compiler: from a Hugging Face checkpoint to an engine folder, and from there to a model repository."""
