"""Networks for OpenVINO."""
