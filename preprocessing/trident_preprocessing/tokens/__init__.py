"""Text becomes token ids."""
