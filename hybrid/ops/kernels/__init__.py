"""Triton kernels of the device operators."""
