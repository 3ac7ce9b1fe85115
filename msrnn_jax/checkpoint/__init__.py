"""Checkpoints and states on disk."""
