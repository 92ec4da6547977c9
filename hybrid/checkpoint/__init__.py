"""Other people's checkpoint formats in: the only place where weights are renamed."""
