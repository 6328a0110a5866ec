"""Networks for TensorRT."""
