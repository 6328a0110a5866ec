"""What every engine on NVIDIA GPUs has: the device, and sampling on its logits."""
