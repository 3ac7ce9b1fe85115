"""Policies that score by keys and values alone."""
