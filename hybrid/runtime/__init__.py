"""Sequences, scheduling on two devices, sampling: from a decoder to tokens."""
