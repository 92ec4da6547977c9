"""Counts, timings and predictors: what is measured once about a model. Knows tensors, never a model."""
