"""Hosts engines that are made of kernels of our own."""
