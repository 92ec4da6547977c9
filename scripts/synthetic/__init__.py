"""Models of any shape with planted sparsity, made from a seed: as a checkpoint, a model directory or a GGUF file."""
