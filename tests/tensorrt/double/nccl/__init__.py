"""Stands for NVIDIA's `nccl4py`."""
