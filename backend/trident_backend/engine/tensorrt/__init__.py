"""The engine host for networks compiled by TensorRT or TensorRT-RTX.

Owns the device's memory, its KV slots and the plan's execution. Never chooses what a step computes, and never imports
another engine.
"""

from trident_backend.engine.tensorrt.loading import load

__all__ = ["load"]
