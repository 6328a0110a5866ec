"""The contract of a Trident deployment: tensors, limits, errors, layout, and the wiring that renders it for Triton."""
