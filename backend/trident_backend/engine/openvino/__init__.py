"""The engine that OpenVINO compiles, on CPUs."""
