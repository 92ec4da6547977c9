"""What `scripts/hard_knocks.py` is made of: damaged files, processes that are hindered, and what is expected."""
