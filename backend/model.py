"""Triton loads this file; everything is in the package."""

from trident_backend.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
