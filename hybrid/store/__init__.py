"""The model directory: its manifest, its files and the rows mapped in place."""
