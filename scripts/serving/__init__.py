"""Requests together: through the Python object, through the engine, and over HTTP to this server and a peer's."""
