"""Model families: each one function in the compiler's vocabulary."""
