"""Model families, each a function in the vocabulary of `ops`."""
