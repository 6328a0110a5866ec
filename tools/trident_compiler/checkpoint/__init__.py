"""What a checkpoint's folder says: its configuration, its tensors' files, its tokenizer."""
