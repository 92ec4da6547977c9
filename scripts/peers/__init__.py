"""The engine and its peer in processes of their own, and what their speeds are held against."""
