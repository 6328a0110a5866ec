"""Triton loads this file; everything is in the package."""

from trident_postprocessing.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
