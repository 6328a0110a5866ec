"""Stands for cuda-python's package of this name."""
