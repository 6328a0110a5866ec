"""Networks that were exported to OpenVINO elsewhere."""
