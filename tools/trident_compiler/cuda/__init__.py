"""Compiles networks to kernels of our own, in the Triton language."""
