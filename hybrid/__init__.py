"""Runs language models larger than the GPU: hot neurons on the GPU, cold ones on the CPU, only the named computed."""
