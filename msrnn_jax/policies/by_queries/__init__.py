"""Policies that score by queries: those of an observation window, or what they are expected to be."""
