"""Requests together: through the Python object, through the engine step by step, and over HTTP to this server and a peer's."""
