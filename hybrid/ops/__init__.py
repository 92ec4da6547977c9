"""Operators: one contract, a reference that defines it, and the fast backends."""
