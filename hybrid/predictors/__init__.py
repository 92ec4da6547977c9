"""Runs what says which neurons will fire."""
