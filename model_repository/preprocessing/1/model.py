"""Triton loads this file; everything is in the package."""

from trident_preprocessing.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
