"""Policies that score by the attention that tokens received, step by step."""
